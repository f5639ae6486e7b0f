"""What a run cost, counted at the one place where the network is called."""

from dataclasses import dataclass


@dataclass
class Ledger:
    """Totals over all images of a run.

    images:      images sampled.
    evaluations: answers given to the solver, times images; a guided answer counts once.
    rows:        images that went through the network; a guided answer counts twice.
    calls:       forward passes, whatever their batch size.
    seconds:     wall time of sampling, without loading and without writing pictures.
    """

    images: int = 0
    evaluations: int = 0
    rows: int = 0
    calls: int = 0
    seconds: float = 0.0

    @property
    def nfe(self) -> float:
        """Evaluations per image: what a solver's budget is counted in."""
        return _per(self.evaluations, self.images)

    @property
    def rows_per_image(self) -> float:
        """Network rows per image: what the run cost, guidance included."""
        return _per(self.rows, self.images)

    def count(self, images: int, branches: int) -> None:
        """Records one forward pass that answers `images` images on that many branches."""
        self.calls += 1
        self.evaluations += images
        self.rows += images * branches

    def as_dict(self) -> dict[str, float]:
        """The figures for `--json`."""
        return {
            "images": self.images,
            "nfe": self.nfe,
            "rows_per_image": self.rows_per_image,
            "calls": self.calls,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(_per(self.images, self.seconds), 3),
        }

    def __str__(self) -> str:
        return (
            f"{self.images} images | NFE {self.nfe:g} | {self.rows_per_image:g} network rows"
            f" per image | {self.calls} calls | {self.seconds:.2f} s"
            f" | {_per(self.images, self.seconds):.1f} images/s"
        )


def _per(total: float, count: float) -> float:
    return total / count if count else 0.0
