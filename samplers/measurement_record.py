"""A measurement as a run records it: names, numbers, and the hashes of the files behind them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..models.errors import SettingError, shorten
from ..models.hashing import hash_file
from ..models.reading import StrictModel, ordinary_file
from .guidance import Guidance, Measured
from .guidance.inverse import METHODS, take_operator


class MeasurementRecord(StrictModel):
    """The measurement that a run agrees with.

    operator, measurement, sigma_y, method: as `Measured` takes them, the measurement as the path of
           a picture.
    files: the sha256 of the measurement and of a mask, by path.
    """

    operator: str
    measurement: str
    sigma_y: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    method: str
    files: dict[str, str] = Field(default_factory=dict)

    def guide(self, inner: Guidance) -> Guidance:
        """Returns the guidance by the measurement around another one.

        Raises:
            FewstepError: for files that cannot be read, and names that are not known.
        """
        operator, method = take_operator(self.operator), METHODS.make(self.method)
        return Measured(operator, self.measurement, self.sigma_y, method, inner)

    def name_files(self) -> "MeasurementRecord":
        """Returns the record with the hashes of the files that are here."""
        paths = (self.measurement, *take_operator(self.operator).files)
        return self.model_copy(update={"files": {each: hash_file(Path(each)) for each in paths}})

    def check_files(self) -> None:
        """Raises SettingError if a file has gone, or is another than the run was drawn with."""
        for path, recorded in self.files.items():
            ordinary_file(Path(path))
            if hash_file(Path(path)) != recorded:
                raise SettingError(
                    f"{shorten(path)} is another file than this picture was drawn with; put that"
                    " one back, or add --force to draw another image with this one"
                )
