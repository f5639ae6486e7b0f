"""Which images `sample` draws: their seeds and classes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..eval.options import IMAGES, MOST, option
from ..models.errors import SettingError

if TYPE_CHECKING:
    from ..models.denoiser import Network

DRAWN = 64  # images where nothing is said of their number
SHOWN = 6  # images of each class of a network that shows some: in the time of 64 grey ones
EACH = 8  # images of each class that was typed
Labels = tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """The seeds and the classes of the images as they are typed."""

    seed: int | None = option(
        None, "Seed of the first image; seeds count up from it. The default is 0.", IMAGES
    )
    seeds: str | None = option(
        None, "One seed for each image, such as 0-63,100, in place of --seed.", IMAGES
    )
    classes: str | None = option(
        None,
        "Class labels, such as 0-9 or 3,5 or shirt; null draws without a class. By default all"
        " classes take turns; emoji draws smileys, flags and people.",
        IMAGES,
    )
    per_class: int | None = option(
        None, "Number of images of each class. The default is 8.", IMAGES
    )

    def choose(self, network: "Network") -> tuple[tuple[int, ...], Labels, int | None]:
        """Returns the seeds, the class labels, if any, and the columns of the grid, if it matters.

        Raises:
            SettingError: for options that disagree, and for classes that the network does not have.
        """
        classes, each = self._find_classes(network)
        seeds, labels = self._pair(network, classes, each)
        return seeds, labels, (each or EACH) if classes and not self.seeds else None

    def _find_classes(self, network: "Network") -> tuple[str | None, int | None]:
        """Returns the classes and how many images of each: what was typed, or what is shown."""
        if self.classes is not None or not network.shown_classes:
            return self.classes, self.per_class
        each = SHOWN if self.per_class is None and self.seeds is None else self.per_class
        return ",".join(map(str, network.shown_classes)), each

    def _pair(
        self, network: "Network", classes: str | None, per_class: int | None
    ) -> tuple[tuple[int, ...], Labels]:
        """Returns the seeds and the class labels, one each per image."""
        from ..models.arguments import parse_ranges
        from ..samplers.conditions import parse_classes

        if per_class is not None and per_class < 1:
            raise SettingError(f"--per-class must be at least 1, not {per_class}")
        if self.seed is not None and self.seeds is not None:
            raise SettingError("give --seed, the first one, or --seeds, all of them, not both")
        first, listed = self.seed or 0, None if self.seeds is None else parse_ranges(self.seeds)
        if classes is None and per_class is None:
            chosen = tuple(listed or range(first, first + DRAWN))
            n = network.num_classes
            return chosen, tuple(i % n for i in range(len(chosen))) if n else None
        if not network.num_classes:
            raise SettingError(f"{network.name} has no classes; drop --classes and --per-class")
        pool = range(network.num_classes) if classes is None else parse_classes(classes, network)
        if pool is None:
            return tuple(listed or range(first, first + (per_class or EACH))), None
        _check_number(len(pool) * (per_class or EACH))
        if listed is not None and per_class is None:
            return tuple(listed), tuple(pool[i % len(pool)] for i in range(len(listed)))
        labels = tuple(label for label in pool for _ in range(per_class or EACH))
        if listed is not None and len(listed) != len(labels):
            raise SettingError(
                f"--seeds gives {len(listed)} images and --classes with --per-class {len(labels)};"
                " drop --per-class or make them equal"
            )
        return tuple(listed or range(first, first + len(labels))), labels


def _check_number(images: int) -> None:
    """Raises SettingError for more images than one command draws."""
    if images > MOST:
        raise SettingError(
            f"{images} images are too many for one command, which keeps them in memory: draw at"
            f" most {MOST:,} at once"
        )
