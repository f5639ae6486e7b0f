"""The error of images that cannot be had or are not what they should be."""

from ...models.errors import FewstepError


class DataError(FewstepError):
    """A data set, folder or archive that is missing, damaged or of no use as it is."""
