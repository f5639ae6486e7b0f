"""`fewstep bench guidance`: the error of guidance that skips evaluations, at equal network rows.

The error is |x - x*| / |x*| over all images, x* a converged run of full classifier-free guidance
from the same noise. The baseline is the same cost spent on plain steps: full guidance in fewer of
them. Only policies that aim at full guidance have such an error: what apg, cfg-zero, magnitude and
cfg-pp draw is meant to differ. Fitted weights lie beside the store.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ...models.errors import FewstepError, SettingError
from ...models.files import write_bytes
from ...models.hashing import hash_file, hash_json
from ...models.registry import parse_spec
from ...models.weights import hash_weights
from ...samplers.guidance import CFG, GuidanceForecast, parse_guidance
from ...samplers.guidance.forecast import Pattern, write_forecast
from ...samplers.sampler import Sampler
from ..bench.cell import Advance
from ..bench.front import FrontBench, FrontSettings, check_fixed, cost_of, relative_error
from ..bench.front_table import FrontPanel, FrontPoint, FrontRun, FrontTable
from ..bench.protocol import Drawn
from ..bench.rows import ResultRow
from ..guidance_fit import Fit, fit
from ..guidance_runs import Images

BASELINE = "cfg"
FITTED = "linear-ag"
METRIC = "relative l2 to converged CFG"
POLICIES = (
    BASELINE,
    *(
        f"guidance-forecast:order={order},warmup={warmup},space={space}"
        for order in (0, 1)
        for warmup in (1, 3)
        for space in ("x0", "v", "eps")
    ),
    "guidance-forecast:order=2,warmup=3,space=eps",
    *(
        f"guidance-forecast:order={order},warmup={warmup},tail={tail},space={space}"
        for order in (0, 1)
        for warmup in (4, 5)
        for tail in (2, 3)
        for space in ("x0", "eps")
    ),
    "guidance-forecast:order=0,every=3,warmup=5,tail=2,space=x0",
    "guidance-forecast:order=0,every=3,warmup=5,tail=2,space=eps",
    *(f"{FITTED}:every=2,warmup={warmup}" for warmup in (1, 3)),
    f"{FITTED}:warmup=4,tail=2",
    *(f"adaptive:threshold={threshold}" for threshold in (0.9, 0.95, 0.98, 0.99, 0.999)),
    *(f"adaptive:threshold={threshold},rewrite_history=true" for threshold in (0.95, 0.98)),
    *(f"adaptive:threshold={threshold},landing=hold" for threshold in (0.95, 0.98)),
    *(f"cfg+interval:low=0,high={high},in=step" for high in (0.4, 0.6, 0.8)),
    "cfg+interval:low=0,high=0.6,in=step,rewrite_history=true",
)


@dataclass(frozen=True, kw_only=True)
class GuidanceFront(FrontSettings):
    """The settings of a front of guidance, beside those of every front.

    scales:   every one is a panel of its own.
    policies: guidances without a scale; `linear-ag:every=..,warmup=..,tail=..,mask=..,d=..,c=..` is
              fitted.
    rows:     the network rows per image that count, from and to.
    solver:   of all runs; one evaluation a step.
    fit_images: that linear-ag is fitted to.
    """

    name = "bench guidance"
    steps: tuple[Annotated[int, Field(ge=2)], ...] = (6, 8, 9, 10, 11, 12, 14, 16, 20)
    scales: tuple[float, ...] = (2.0, 3.0)
    policies: tuple[str, ...] = POLICIES
    rows: tuple[int, int] = (12, 40)
    solver: str = "dpmpp-2m"
    reference_nfe: Annotated[int, Field(ge=20)] = 200
    fit_images: Annotated[int, Field(ge=2)] = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rows[0] < self.rows[1]:
            raise SettingError(f"rows run from a lower to a higher number, not {self.rows}")
        check_fixed((self.solver, self.reference), "own steps")
        for policy in self.policies:
            _ = _fit_of(policy) if _is_fitted(policy) else parse_guidance(policy, 2.0)

    def cells(self) -> list[FrontRun]:
        """Returns all that may be measured: cheap first."""
        return [
            FrontRun(model, self.solver, steps, policy, scale)
            for model in self.models
            for scale in self.scales
            for steps in sorted(self.steps)
            for policy in map(write_forecast, self.policies)
            if _applies(policy, steps)
        ]


class GuidanceBench(FrontBench):
    """The errors of a front on this machine."""

    policy_field = "guidance_spec"
    front: GuidanceFront

    def cells(self) -> list[FrontRun]:
        return self.front.cells()

    def find_rows(self, cell: FrontRun) -> list[ResultRow]:
        """Returns the row of a run, whichever weights were fitted for it."""
        return [row for row in self._alike() if _run_of(row) == cell]

    def identify(self, cell: FrontRun) -> str:
        return repr((cell, self.measure_to(self.converged, METRIC)))

    def rows(self) -> list[ResultRow]:
        """Returns the rows in the store, in its order, that are within the network rows."""
        cells, (low, high) = set(self.cells()), self.front.rows
        return [row for row in self._alike() if _run_of(row) in cells and low <= _rows(row) <= high]

    def points(self) -> list[FrontPoint]:
        return [_point(row) for row in self.rows()]

    def leave_out(self, cell: FrontRun, error: FewstepError) -> None:
        """Goes on."""
        self.note(f"{cell.policy}, {cell.nfe} steps: {error}")

    def measure(self, cell: FrontRun, advance: Advance) -> list[ResultRow]:
        """Returns the error of one run."""
        front, files = self.front, self._weights(cell)
        spec = f"{FITTED}:file={next(iter(files))}" if files else cell.policy or ""
        guidance = parse_guidance(spec, cell.scale)
        seeds = range(front.images)
        target = self.draw_reference(
            cell.model,
            seeds,
            solver=front.reference,
            nfe=front.reference_nfe,
            guidance=CFG(cell.scale),
        )
        result = Sampler(self.network(cell.model))(
            seeds,
            class_labels=self.labels(cell.model, seeds),
            guidance=guidance,
            batch=front.images,
            solver=front.solver,
            nfe=cell.nfe,
            grid=front.grid,
        )
        names = {Path(path).name: sha for path, sha in files.items()}
        protocol = self.protocol(cell, self.measure_to(self.converged, METRIC), names)
        error = relative_error(result.samples, target)
        return [ResultRow.now(protocol, error, cost=cost_of(result))]

    def _alike(self) -> list[ResultRow]:
        """Returns the rows of the store that are measured as this front measures."""
        how = self.front.solver, self.front.grid
        measure, alike = self.measure_to(self.converged, METRIC), []
        for row in self.store.rows.values():
            images = row.protocol.images
            if isinstance(images, Drawn) and (images.run.solver, images.run.grid) == how:
                alike += [row] if row.protocol.measure == measure else []
        return alike

    def _weights(self, cell: FrontRun) -> dict[str, str]:
        """Returns the file of the weights that are fitted to a run, by path, and its sha256."""
        if not _is_fitted(cell.policy or ""):
            return {}
        front, (pattern, terms) = self.front, _fit_of(cell.policy or "")
        what = Fit(
            solver=front.solver,
            nfe=cell.nfe,
            scale=cell.scale,
            grid=front.grid,
            pattern=pattern,
            terms=terms,
        )
        facts = [cell.model, cell.scale, cell.policy, cell.nfe, front.fit_images]
        facts += [front.solver, front.grid, hash_weights(cell.model, whole=True)]
        path = self.folder_beside("weights") / f"{hash_json(facts)[:16]}.json"
        if not path.is_file():
            images = Images(count=front.fit_images)
            body = fit(self.network(cell.model), what, images).model_dump_json(indent=1)
            write_bytes(path, body.encode())
        return {str(path): hash_file(path)}


def _is_fitted(policy: str) -> bool:
    return policy.partition(":")[0] == FITTED


def _applies(policy: str, steps: int) -> bool:
    """Returns whether a policy is for so many steps, and is not full guidance there."""
    if _is_fitted(policy):
        pattern = _fit_of(policy)[0]
    else:
        guidance = parse_guidance(policy, 2.0)
        if not isinstance(guidance, GuidanceForecast):
            return True
        pattern = guidance.pattern
    if pattern.mask and len(pattern.mask) != steps:
        return False
    return not all(pattern.list_flags(steps))


def _fit_of(policy: str) -> tuple[Pattern, tuple[int, int]]:
    """Returns the pattern and the terms of a `linear-ag` that is to be fitted."""
    usual = {"warmup": 1, "every": 2, "mask": "", "tail": 0, "d": 2, "c": 2}
    given = {**usual, **parse_spec(policy)[1]}
    if given.keys() - usual.keys():
        raise SettingError(f"{policy!r}: a fitted linear-ag takes {', '.join(usual)}")
    pattern = Pattern(given["warmup"], given["every"], str(given["mask"]), given["tail"])
    return pattern, (given["d"], given["c"])


def _run_of(row: ResultRow) -> FrontRun:
    images = row.protocol.images
    if not isinstance(images, Drawn):
        raise SettingError("a row of real images is none of this front")
    run = images.run
    spec = run.guidance_spec or BASELINE
    return FrontRun(run.model, run.solver or "", run.nfe or 0, spec, run.cfg_scale)


def _rows(row: ResultRow) -> float:
    return row.cost.rows if row.cost else 0.0


def _point(row: ResultRow) -> FrontPoint:
    seconds = row.cost.seconds if row.cost else 0.0
    return FrontPoint(_run_of(row), _rows(row), row.value, seconds=seconds)


class GuidanceTable(FrontTable):
    """Errors to converged guidance against network rows."""

    baseline, line = BASELINE, "full CFG, fewer steps"
    head, column, budgets = "guidance", "{} rows", (12, 16, 20, 24, 32, 40)
    intro = (
        f"The table gives the {METRIC}. In brackets is its ratio to the error of full guidance with"
        " the same rows."
    )
    xlabel, ylabel = "network rows per image", METRIC
    header = "model,cfg_scale,guidance,nfe,rows,error,of_baseline,seconds_per_image"

    def window(self, budget: int) -> tuple[float, float]:
        return max((each for each in self.budgets if each < budget), default=0), budget

    def share(self, panel: FrontPanel, point: FrontPoint, budget: int) -> float:
        return panel.share(point, budget)

    def list_best(self, panel: FrontPanel) -> Iterator[str]:
        for name, budget in product(panel.families, self.budgets):
            point = self.best(panel, name, budget)
            if point is not None and name != self.baseline:
                run = point.run
                yield f"- {name}, {budget} rows: `{run.policy}`, {run.nfe} steps"

    def csv_line(self, panel: FrontPanel, point: FrontPoint) -> str:
        run = point.run
        facts = (run.model, f"{run.scale:g}", f'"{run.policy}"', run.nfe, f"{point.cost:g}")
        shown = (f"{point.error:.5f}", f"{panel.share(point):.4f}", f"{point.seconds:.4f}")
        return ",".join(map(str, (*facts, *shown)))
