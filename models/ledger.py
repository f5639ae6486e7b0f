"""The cost of a run, counted at the one place where the network is called."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCall:
    """The work of a cache in one call of the network.

    branch:   "cond", "uncond+cond" or what a pipeline calls it.
    stage:    which evaluation within a step of the solver; index: the step.
    kind:     "full", "skip", or "partial" where some rows were computed.
    error:    the error that the gate measured, if it was used.
    rows:     in the batch; computed: the fraction of them that ran through all blocks.
    skipped:  names of the parts that the other rows did not run through.
    """

    branch: str
    stage: int
    index: int
    kind: str
    error: float | None
    rows: int
    computed: float
    skipped: tuple[str, ...]


@dataclass
class CacheLedger:
    """The work of a cache in all calls since it was attached.

    policy:          its name.
    bytes_predicted: the bytes stored once its forecasts have reached their order, known after the
                     first call of every branch; bytes_held: the maximum at the end of a run.
    parts:           how many blocks (or cached sub-modules) a full call runs.
    restarts:        calls with other rows than the one before, which drop all that is stored.
    share:           the cost of a call, 1 for a full one, in FLOPs that were counted by running it.
    """

    policy: str = ""
    calls: list[CacheCall] = field(default_factory=list)
    bytes_predicted: int = 0
    bytes_held: int = 0
    parts: int = 0
    restarts: int = 0
    share: Callable[[CacheCall], float] = lambda call: 1.0
    _odd: int = 0

    def notice(self, errors: Sequence[float]) -> None:
        """Warns at the second error that is exactly 0 or no number: the gate may see nothing."""
        self._odd += any(error == 0.0 or not math.isfinite(error) for error in errors)
        if self._odd == 2:
            warnings.warn(
                f"the gate of {self.policy} measured {errors[0]:g}: either nothing changes between"
                " calls or the network overwrites what the gate compares with",
                stacklevel=2,
            )

    def since(self, start: int) -> "CacheLedger":
        """Returns the same ledger for the calls from the start-th on."""
        return replace(self, calls=self.calls[start:])

    @property
    def hits(self) -> int:
        """Calls that were skipped, wholly or for some rows."""
        return sum(call.kind != "full" for call in self.calls)

    @property
    def hit_rate(self) -> float:
        """The fraction of all rows that were skipped."""
        rows = sum(call.rows for call in self.calls)
        return _divide(sum(call.rows * (1.0 - call.computed) for call in self.calls), rows)

    @property
    def block_evaluations(self) -> float:
        """Blocks (or cached sub-modules) that ran, with the fraction of the rows they ran on."""
        return sum(self.parts - len(call.skipped) * (1.0 - call.computed) for call in self.calls)

    @property
    def effective_calls(self) -> float:
        """All calls in units of a full one, by FLOPs."""
        return sum(map(self.share, self.calls))

    @property
    def relative_cost(self) -> float:
        """FLOPs of the run over those without a cache; 1 if nothing ran."""
        rows = sum(call.rows for call in self.calls)
        paid = sum(call.rows * self.share(call) for call in self.calls)
        return _divide(paid, rows) if rows else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures for `--json`."""
        return {
            "policy": self.policy,
            "calls": len(self.calls),
            "full": sum(call.kind == "full" for call in self.calls),
            "skipped": sum(call.kind == "skip" for call in self.calls),
            "partial": sum(call.kind == "partial" for call in self.calls),
            "hit_rate": round(self.hit_rate, 4),
            "effective_calls": round(self.effective_calls, 3),
            "relative_cost": round(self.relative_cost, 4),
            "block_evaluations": round(self.block_evaluations, 3),
            "bytes_predicted": self.bytes_predicted,
            "bytes_held": self.bytes_held,
        }

    def table(self) -> list[tuple[str, ...]]:
        """Returns one row per call: step, stage, branch, kind and the gate's error."""
        rows: list[tuple[str, ...]] = [("step", "stage", "branch", "did", "error")]
        for call in self.calls:
            error = "" if call.error is None else f"{call.error:.4g}"
            rows.append((str(call.index), str(call.stage), call.branch, call.kind, error))
        return rows

    def __str__(self) -> str:
        return (
            f"{self.policy}: {self.hits} of {len(self.calls)} calls skipped"
            f" | {self.effective_calls:.2f} effective calls"
            f" | {self.block_evaluations:g} block evaluations"
            f" | {self.bytes_held / 1e6:.2f} MB held"
        )


@dataclass
class Ledger:
    """Totals over all images of a run.

    images:      images sampled.
    evaluations: answers given to the solver, times images; a guided answer counts once.
    rows:        images that went through the network; a guided answer counts twice.
    backwards:   rows that a gradient went back through, once for each time it did.
    operations:  tensor operations of functions of predictions, which some schedules weigh, times
                 images; they are no evaluations.
    multiplications: multiply-adds of learned corrections, times images; they are no evaluations.
    calls:       forward passes of any batch size.
    seconds:     wall time of sampling, without loading and without writing pictures.
    steps:       rows in each step of the solver, by its number.
    cache:       the work of the cache, if one was attached.
    """

    images: int = 0
    evaluations: int = 0
    rows: int = 0
    backwards: int = 0
    operations: int = 0
    multiplications: int = 0
    calls: int = 0
    seconds: float = 0.0
    steps: dict[int, int] = field(default_factory=dict)
    cache: CacheLedger | None = None

    @property
    def nfe(self) -> float:
        """Evaluations per image: what a solver's budget is counted in."""
        return _divide(self.evaluations, self.images)

    @property
    def rows_per_image(self) -> float:
        """Network rows per image: what the run cost, guidance included."""
        return _divide(self.rows, self.images)

    @property
    def backwards_per_image(self) -> float:
        """Network rows per image that a gradient went back through."""
        return _divide(self.backwards, self.images)

    @property
    def operations_per_image(self) -> float:
        """Operations of functions of predictions per image, on a tensor of its size each."""
        return _divide(self.operations, self.images)

    @property
    def correction_flops(self) -> float:
        """FLOPs per image of learned corrections."""
        return _divide(2 * self.multiplications, self.images)

    @property
    def rows_per_step(self) -> tuple[float, ...]:
        """Network rows per image in each step."""
        return tuple(_divide(self.steps[n], self.images) for n in sorted(self.steps))

    @property
    def saved(self) -> float:
        """The share of the rows that guidance saved, of two for each evaluation."""
        return 1.0 - self.rows / (2.0 * self.evaluations) if self.evaluations else 0.0

    def count_step(self, n: int, rows: int) -> None:
        """Records the rows of step n of one batch."""
        self.steps[n] = self.steps.get(n, 0) + rows

    def count(self, images: int, rows: int) -> None:
        """Records one forward pass of so many rows, which answers `images` images."""
        self.calls += 1
        self.evaluations += images
        self.rows += rows

    def count_backward(self, rows: int) -> None:
        """Records that a gradient went back through the network for so many rows."""
        self.backwards += rows

    def add(self, other: "Ledger") -> None:
        """Records the calls of another ledger, as when a recorded run is replayed."""
        self.calls += other.calls
        self.evaluations += other.evaluations
        self.rows += other.rows
        self.backwards += other.backwards
        self.operations += other.operations
        self.multiplications += other.multiplications
        for n, rows in other.steps.items():
            self.count_step(n, rows)

    @property
    def effective_nfe(self) -> float:
        """Evaluations per image in units of one without a cache, by FLOPs."""
        return self.nfe if self.cache is None else self.nfe * self.cache.relative_cost

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures for `--json`."""
        figures: dict[str, Any] = {
            "images": self.images,
            "nfe": self.nfe,
            "rows_per_image": self.rows_per_image,
            "calls": self.calls,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(_divide(self.images, self.seconds), 3),
        }
        if self.rows > self.evaluations:
            figures["rows_per_step"] = [round(rows, 4) for rows in self.rows_per_step]
            figures["saved_of_cfg"] = round(self.saved, 4)
        if self.backwards:
            figures["backwards_per_image"] = self.backwards_per_image
        if self.operations:
            figures["operations_per_image"] = self.operations_per_image
        if self.multiplications:
            figures["correction_flops_per_image"] = self.correction_flops
        if self.cache is not None:
            figures["effective_nfe"] = round(self.effective_nfe, 3)
            figures["cache"] = self.cache.as_dict()
        return figures

    def _describe_further(self) -> str:
        """Returns backward passes and functions of predictions in words where there were any."""
        backwards = f" | {self.backwards_per_image:g} backward" if self.backwards else ""
        if not self.operations:
            return backwards
        return f"{backwards} | {self.operations_per_image:g} operations of functions"

    def _describe_correction(self) -> str:
        """Returns the FLOPs of learned corrections in words where there were any."""
        flops = f"{self.correction_flops / 1e6:.3g} MFLOPs"
        return f" | {flops} of correction" if self.multiplications else ""

    def _describe_saving(self) -> str:
        """Returns the saving in words where some evaluations have two rows and some one."""
        some = self.evaluations < self.rows < 2 * self.evaluations
        return f" ({100.0 * self.saved:.0f} % fewer than full guidance)" if some else ""

    def __str__(self) -> str:
        text = (
            f"{self.images} images | NFE {self.nfe:g} | {self.rows_per_image:g} network rows"
            f" per image{self._describe_saving()}{self._describe_further()}"
            f"{self._describe_correction()}"
            f" | {self.calls} calls | {self.seconds:.2f} s"
            f" | {_divide(self.images, self.seconds):.1f} images/s"
        )
        if self.cache is None:
            return text
        return f"{text}\n{self.cache} | effective NFE {self.effective_nfe:.2f}"


def _divide(total: float, count: float) -> float:
    return total / count if count else 0.0
