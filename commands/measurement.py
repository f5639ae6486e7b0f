"""Options of `sample` for a measurement of the image, and for how it was made."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..eval.options import option
from ..models.errors import SettingError

if TYPE_CHECKING:
    from ..samplers.measurement_record import MeasurementRecord

MEASUREMENT = "Measurement"  # the heading in `--help`


@dataclass(frozen=True, kw_only=True)
class MeasurementOptions:
    """A measurement y = A x + noise of the images as it is typed."""

    operator: str | None = option(
        None,
        "Restore images from a measurement, which this operator has made of them, such as"
        " inpaint:mask.png or downsample:4; see `fewstep list operators`. The default solver is"
        " then ddpm.",
        MEASUREMENT,
    )
    measurement: Path | None = option(
        None, "The picture to restore from, which --operator has made.", MEASUREMENT
    )
    sigma_y: float | None = option(
        None,
        "Standard deviation of the noise in --measurement, for values from -1 (black) to 1 (white)."
        " The default is 0.01.",
        MEASUREMENT,
    )
    method: str | None = option(
        None,
        "The method that makes the images agree with --measurement, as name[:key=value,...]; see"
        " `fewstep list methods`. The default is diffpir.",
        MEASUREMENT,
    )

    def record(self) -> "MeasurementRecord | None":
        """Returns the measurement as a run records it, without hashes; None if there is none.

        Raises:
            SettingError: for options that do not stand alone.
        """
        if (self.operator is None) != (self.measurement is None):
            raise SettingError("--operator and --measurement go together; give both")
        if self.operator is None or self.measurement is None:
            if (self.sigma_y, self.method) != (None, None):
                raise SettingError(
                    "--sigma-y and --method belong to a measurement; give --operator and"
                    " --measurement"
                )
            return None
        from ..samplers.guidance import Measured
        from ..samplers.measurement_record import MeasurementRecord

        sigma_y = Measured.sigma_y if self.sigma_y is None else self.sigma_y
        if not 0.0 <= sigma_y < float("inf"):
            raise SettingError(f"--sigma-y must be at least 0, not {sigma_y:g}; 0 is without noise")
        return MeasurementRecord(
            operator=self.operator,
            measurement=str(self.measurement),
            sigma_y=sigma_y,
            method=self.method or "diffpir",
        )
