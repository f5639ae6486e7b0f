"""`fewstep bench guidance`: the error of guidance that skips evaluations, at equal network rows.

The error is |x - x*| / |x*| over all images, x* a converged run of full classifier-free guidance
from the same noise. The row to beat is the honest one, full guidance in fewer steps. Only policies
that aim at full guidance have such an error: what apg, cfg-zero, magnitude and cfg-pp draw is meant
to differ.

Figures are kept in an append-only store and not measured again; fitted weights lie beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from ..models.denoiser import Network
from ..models.errors import FewstepError, SettingError
from ..models.files import make_folder, write_bytes
from ..models.load import load
from ..models.registry import parse_spec
from ..samplers.guidance import CFG, GuidanceForecast, named_guidance
from ..samplers.guidance.pattern import Pattern
from ..samplers.guidance.settings import Checked
from ..samplers.run import Run
from ..samplers.sampler import Sampler
from ..samplers.teacher import teacher
from ..solvers import take_solver
from .guidance_fit import Fit, fitted
from .guidance_runs import Images
from .panels import between
from .protocol import Drawn, Measure, Protocol, digest, file_sha256, weights_sha256
from .store import Cost, Row, Store

HONEST = "cfg"
FITTED = "linear-ag"
METRIC = "relative l2 to converged CFG"
POLICIES = (
    HONEST,
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
class Front(Checked):
    """What is measured.

    models, scales: every combination is a panel of its own.
    policies: guidances without a scale; `linear-ag:every=..,warmup=..,tail=..,mask=..,d=..,c=..` is
              fitted.
    steps:    of all policies; rows: the network rows per image that count, from and to.
    solver, grid: of all runs; one evaluation a step.
    images:   noises, from seed 0, of all classes in turn.
    reference, reference_nfe: the converged run.
    fit_images: that linear-ag is fitted to.
    """

    models: tuple[str, ...] = ("fashion-dit", "fashion-unet")
    scales: tuple[float, ...] = (2.0, 3.0)
    policies: tuple[str, ...] = POLICIES
    steps: tuple[Annotated[int, Field(ge=2)], ...] = (6, 8, 9, 10, 11, 12, 14, 16, 20)
    rows: tuple[int, int] = (12, 40)
    solver: str = "dpmpp-2m"
    grid: str | None = None
    images: Annotated[int, Field(ge=2)] = 48
    reference: str = "unipc-3"
    reference_nfe: Annotated[int, Field(ge=20)] = 200
    fit_images: Annotated[int, Field(ge=2)] = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rows[0] < self.rows[1]:
            raise SettingError(f"rows run from a lower to a higher number, not {self.rows}")
        for solver in (self.solver, self.reference):
            if take_solver(solver).info.adaptive:
                raise SettingError(f"{solver} chooses its own steps; take dpmpp-2m or another")
        for policy in self.policies:
            _ = _fit_of(policy) if _is_fitted(policy) else named_guidance(policy, 2.0)

    def cells(self) -> list["Cell"]:
        """All that may be measured: cheap first."""
        return [
            Cell(model, scale, policy, steps)
            for model in self.models
            for scale in self.scales
            for steps in sorted(self.steps)
            for policy in self.policies
            if _applies(policy, steps)
        ]


@dataclass(frozen=True)
class Cell:
    """One figure."""

    model: str
    scale: float
    policy: str
    steps: int


@dataclass
class Bench:
    """A front on this machine.

    store: where figures go and come from; weights and the reference lie beside it.
    """

    front: Front
    store: Store
    device: str = "cpu"
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._network = lru_cache(maxsize=1)(self._loaded)
        self._reference = lru_cache(maxsize=1)(self._converged)

    def run(self, progress: bool = False) -> Iterator[Row]:
        """Measures what is missing and yields each row once it is in the store."""
        waiting = [cell for cell in self.front.cells() if not self._has(cell)]
        turns = self.store.turns(waiting, lambda cell: (cell, self._measure()), self._has)
        off = None if progress else True
        for cell in tqdm(turns, total=len(waiting), unit="run", disable=off):
            try:
                row = self.measure(cell)
            except FewstepError as error:
                self.remarks.append(f"{cell.policy}, {cell.steps} steps: {error}")
                continue
            self.store.append(row)
            yield row

    def rows(self) -> list[Row]:
        """The rows of this front that are in the store, within its network rows."""
        keys = {self._key(cell) for cell in self.front.cells()}
        low, high = self.front.rows
        return [
            row for row in self._alike() if self._key_of(row) in keys and low <= cost(row) <= high
        ]

    def measure(self, cell: Cell) -> Row:
        """One figure."""
        network = self._network(cell.model)
        files = self._weights(cell) if _is_fitted(cell.policy) else {}
        spec = cell.policy
        if files:
            spec = f"{FITTED}:file={next(iter(files))}"
        guidance = named_guidance(spec, cell.scale)
        exact = self._reference(cell.model, cell.scale)
        result = Sampler(network)(
            range(self.front.images),
            class_labels=self._labels(network),
            guidance=guidance,
            batch=self.front.images,
            solver=self.front.solver,
            nfe=cell.steps,
            grid=self.front.grid,
        )
        error = float((result.samples - exact).norm() / exact.norm())
        ledger = result.ledger
        rows = ledger.rows_per_image
        seconds = ledger.seconds / ledger.images
        spent = Cost(nfe=ledger.nfe, rows=rows, effective=rows, flops=0.0, seconds=seconds)
        return Row.now(self._protocol(cell, files), error, cost=spent)

    def _protocol(self, cell: Cell, files: dict[str, str]) -> Protocol:
        run = Run(
            model=cell.model,
            solver=self.front.solver,
            grid=self.front.grid,
            nfe=cell.steps,
            seeds=tuple(range(self.front.images)),
            cfg_scale=cell.scale,
            guidance_spec=cell.policy,
            device=self.device,
        )
        classes = self._network(cell.model).num_classes
        drawn = Drawn(
            run=run,
            weights=weights_sha256(cell.model),
            files={Path(path).name: sha for path, sha in files.items()},
            labels=f"seed modulo {classes}" if classes else "none",
        )
        return Protocol(images=drawn, measure=self._measure())

    def _measure(self) -> Measure:
        name = f"{self.front.reference}, {self.front.reference_nfe} evaluations"
        return Measure(
            metric=METRIC,
            extractor="pixels",
            extractor_sha256="",
            resize="none",
            reference=name,
            reference_sha256=digest([name, self.front.grid, self.front.images]),
            n=self.front.images,
        )

    def _alike(self) -> list[Row]:
        """Rows of the store that are measured as this front measures."""
        solver, grid, measure = self.front.solver, self.front.grid, self._measure()
        found = []
        for row in self.store.rows.values():
            images = row.protocol.images
            same = isinstance(images, Drawn) and (images.run.solver, images.run.grid) == (
                solver,
                grid,
            )
            if same and row.protocol.measure == measure:
                found.append(row)
        return found

    def _has(self, cell: Cell) -> bool:
        return self._key(cell) in map(self._key_of, self._alike())

    def _key(self, cell: Cell) -> tuple[str, float, str | None, int | None]:
        return cell.model, cell.scale, cell.policy, cell.steps

    def _key_of(self, row: Row) -> tuple[str, float, str | None, int | None]:
        return _run(row).model, _run(row).cfg_scale, _run(row).guidance_spec, _run(row).nfe

    def _loaded(self, model: str) -> Network:
        return load(model, device=self.device)

    def _labels(self, network: Network) -> list[int] | None:
        classes = network.num_classes
        return [seed % classes for seed in range(self.front.images)] if classes else None

    def _converged(self, model: str, scale: float) -> Tensor:
        network = self._network(model)
        folder = self._beside("reference")
        return teacher(
            network,
            list(range(self.front.images)),
            solver=self.front.reference,
            cache=folder,
            class_labels=self._labels(network),
            guidance=CFG(scale),
            batch=self.front.images,
            nfe=self.front.reference_nfe,
        )

    def _weights(self, cell: Cell) -> dict[str, str]:
        """The file of fitted weights, by path, and its sha256."""
        pattern, terms = _fit_of(cell.policy)
        what = Fit(
            solver=self.front.solver,
            nfe=cell.steps,
            scale=cell.scale,
            grid=self.front.grid,
            pattern=pattern,
            terms=terms,
        )
        facts = [cell.model, cell.scale, cell.policy, cell.steps, self.front.fit_images]
        facts += [self.front.solver, self.front.grid, weights_sha256(cell.model)]
        path = self._beside("weights") / f"{digest(facts)[:16]}.json"
        if not path.is_file():
            images = Images(count=self.front.fit_images)
            body = fitted(self._network(cell.model), what, images).model_dump_json(indent=1)
            write_bytes(path, body.encode())
        return {str(path): file_sha256(path)}

    def _beside(self, name: str) -> Path:
        folder = self.store.path.with_name(f"{self.store.path.name}.{name}")
        make_folder(folder)
        return folder


def _is_fitted(policy: str) -> bool:
    return policy.partition(":")[0] == FITTED


def _applies(policy: str, steps: int) -> bool:
    """Whether a policy is for so many steps, and is another than full guidance there."""
    if _is_fitted(policy):
        pattern = _fit_of(policy)[0]
    else:
        guidance = named_guidance(policy, 2.0)
        if not isinstance(guidance, GuidanceForecast):
            return True
        pattern = guidance.pattern
    if pattern.mask and len(pattern.mask) != steps:
        return False
    return not all(pattern.flags(steps))


def _fit_of(policy: str) -> tuple[Pattern, tuple[int, int]]:
    """The pattern and the terms of a `linear-ag` that is to be fitted."""
    usual = {"warmup": 1, "every": 2, "mask": "", "tail": 0, "d": 2, "c": 2}
    given = {**usual, **parse_spec(policy)[1]}
    if given.keys() - usual.keys():
        raise SettingError(f"{policy!r}: a fitted linear-ag takes {', '.join(usual)}")
    pattern = Pattern(given["warmup"], given["every"], str(given["mask"]), given["tail"])
    return pattern, (given["d"], given["c"])


def _run(row: Row) -> Run:
    images = row.protocol.images
    if not isinstance(images, Drawn):
        raise SettingError("a row of real images is none of this front")
    return images.run


def cost(row: Row) -> float:
    """Network rows per image."""
    return row.cost.rows if row.cost else 0.0


@dataclass(frozen=True)
class Panel:
    """The rows of one network and scale."""

    model: str
    scale: float
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return f"{self.model}, CFG {self.scale:g}"

    def family(self, name: str) -> list[Row]:
        """The rows of policies whose spec begins with a name, cheap first."""
        found = [row for row in self.rows if label(row) == name]
        return sorted(found, key=cost)

    @property
    def families(self) -> list[str]:
        """The honest row first."""
        found = sorted({label(row) for row in self.rows})
        return sorted(found, key=lambda name: name != HONEST)

    def honest(self, rows: float) -> float:
        """The error of full guidance at so many network rows, between its steps log-linear."""
        points = [(cost(row), row.value) for row in self.family(HONEST)]
        return between(points, rows)


def label(row: Row) -> str:
    """The family of a row's policy: cfg alone is the honest one."""
    spec = _run(row).guidance_spec or HONEST
    if spec.startswith("cfg+interval"):
        return "interval"
    return spec.partition(":")[0]


def panels(rows: Sequence[Row]) -> list[Panel]:
    """One for each network and scale, in the order they come."""
    keys = dict.fromkeys((_run(row).model, _run(row).cfg_scale) for row in rows)
    return [
        Panel(
            model,
            scale,
            tuple(r for r in rows if (_run(r).model, _run(r).cfg_scale) == (model, scale)),
        )
        for model, scale in keys
    ]
