"""The error of images that cannot be had, and what reading raises at files that are damaged."""

import tokenize
import zipfile
import zlib

from ...models.errors import FewstepError

UNREADABLE = (  # of arrays, pictures and zips that are damaged or made up
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    OverflowError,
    MemoryError,  # of a header that promises too much
    RuntimeError,  # encrypted, of an unknown compression, or nested too deeply
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class DataError(FewstepError):
    """A data set, folder or archive that is missing, damaged or of no use as it is."""
