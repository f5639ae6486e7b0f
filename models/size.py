"""The size of a sample."""

from dataclasses import dataclass

from .errors import SettingError


@dataclass(frozen=True)
class Size:
    """The size of the sample, in pixels and frames.

    guidance: the scale given to distilled networks; None is the default of their pipelines.
    """

    height: int
    width: int
    frames: int = 1
    guidance: float | None = None

    def __post_init__(self) -> None:
        for name in ("height", "width", "frames"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingError(f"{name}={value!r} must be a positive whole number")
