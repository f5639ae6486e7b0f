"""`fewstep.evaluate`: figures of images, or of what a network draws against its evaluations."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import torch
from torch import Tensor

from ..models.errors import SettingError, UnknownNameError
from ..models.network import Network
from ..models.user_code import lend
from .bench.cell import Advance, Experiment
from .bench.protocol import Drawn, Measure
from .bench.rows import ResultRow, ResultStore, SamplingCost, TimeSpent
from .bench.runner import run_all
from .experiments.fid_evaluator import make_evaluator
from .experiments.fid_nfe import QualityBench, flops_per_row, make_draw
from .experiments.fid_plan import QualityCell, plan_cells
from .experiments.fid_points import QualityTable
from .experiments.fid_sweep import Entry, Sweep, check_choices
from .metrics.command import MetricReport, measure_request
from .options import make_request
from .requests import EvaluationRequest

SampleFigure = Callable[[Tensor], Tensor | float]
OF_SWEEP = ("metric", "reference", "floor", "n", "blocks", "batch")
OF_ENTRY = tuple(name for name in Entry.model_fields if name != "models")


@overload
def evaluate(
    images: str, reference: str | None = None, *, progress: bool = False, **options: Any
) -> MetricReport: ...


@overload
def evaluate(
    images: Network, reference: str | None = None, *, progress: bool = False, **options: Any
) -> QualityTable: ...


def evaluate(
    images: str | Network, reference: str | None = None, *, progress: bool = False, **options: Any
) -> MetricReport | QualityTable:
    """Measures images, or what a network draws in few evaluations.

    Of images it gives what `fewstep fid` does, of a network what `fewstep bench fid-nfe` does.

    >>> report = fewstep.evaluate("samples/", "fashion-mnist-32:test", extractor="small")
    >>> report.figures[0].label, report.figures[0].value
    >>> network = fewstep.load("fashion-dit")
    >>> table = fewstep.evaluate(network, solvers=["unipc-2"], nfe=[4, 8], metric="fd-small", n=100)
    >>> print(table.table()); [(point.nfe, point.mean) for point in table.points]

    Args:
        images: a folder, a .zip, a .npz, or the name of a data set; or a `Network`.
        reference: images in one of these forms, or a .npz of statistics.
        progress: shows how far it is.
        options: of images the fields of `EvaluationRequest`. Of a network solvers, rivals, grids,
            final, nfe, cfg_scales, cfg_interval, guidances and caches, whose every combination is
            measured; plans, files of `fewstep tune`; n images of each, blocks, batch; metric, a
            name, or a function of your own that is given all samples (n, *) of a setting and
            returns a number, of which less is better; store, a .jsonl file that keeps what was
            measured; weights, a file with those of the metric's network.

    Raises:
        FewstepError: for anything that cannot be measured.
    """
    if isinstance(images, Network):
        return _evaluate_network(images, progress, {"reference": reference, **options})
    request = make_request(EvaluationRequest, images=images, reference=reference, **options)
    return measure_request(request, progress)


def _evaluate_network(network: Network, progress: bool, options: dict[str, Any]) -> QualityTable:
    """Returns the figures of what a network draws."""
    metric, weights = options.pop("metric", "fd-small"), options.pop("weights", None)
    store = options.pop("store", None)
    with ExitStack() as stack:
        name = stack.enter_context(lend(network))
        sweep = _make_sweep(name, metric, options)
        if store is None:
            store = Path(stack.enter_context(TemporaryDirectory())) / "results.jsonl"
        elif callable(metric):
            raise SettingError(
                "a store cannot tell one function from another; drop store, or give the name of a"
                " metric"
            )
        rows = ResultStore(Path(store))
        rows.check()
        bench: Experiment[QualityCell, ResultRow]
        if callable(metric):
            bench = FunctionBench(sweep, metric, network, rows)
        else:
            evaluator = make_evaluator(sweep, str(network.device), weights and Path(weights))
            bench = QualityBench(sweep, evaluator, rows)
        run_all(bench, progress)
        return QualityTable.of(bench.rows(), bench.remarks)


def _make_sweep(name: str, metric: str | SampleFigure, options: dict[str, Any]) -> Sweep:
    """Returns what is measured; raises FewstepError for an option that is none."""
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in (*OF_SWEEP, *OF_ENTRY):
            raise UnknownNameError("option", key, [*OF_SWEEP, *OF_ENTRY, "store", "weights"])
    if isinstance(nfe := given.get("nfe"), int | Iterable) and not isinstance(nfe, str):
        given["nfe"] = ",".join(map(str, [nfe] if isinstance(nfe, int) else nfe))
    entry = {key: given.pop(key) for key in OF_ENTRY if key in given}
    if not isinstance(metric, str):
        metric = getattr(metric, "__name__", type(metric).__name__)
    entry.setdefault("solvers", () if entry.keys() & {"rivals", "plans"} else ("unipc-2",))
    entries = [check_choices(Entry, models=[name], **entry)]
    return check_choices(Sweep, entries=entries, metric=metric, **given)


class FunctionBench(Experiment[QualityCell, ResultRow]):
    """A sweep on one network whose figure is a function of its samples."""

    unit = "row"

    def __init__(
        self, sweep: Sweep, function: SampleFigure, network: Network, store: ResultStore
    ) -> None:
        self.sweep, self.function, self.network, self.store = sweep, function, network, store
        facts = {"extractor": "none", "extractor_sha256": "", "resize": "none"}
        facts |= {"reference": "none", "reference_sha256": "", "quantisation": "none"}
        measure = Measure(metric=sweep.metric, n=sweep.n, **facts)
        plan = plan_cells(sweep, measure, lambda name: network)
        self._cells, self.remarks = plan.cells, list(plan.refused)

    @cached_property
    def _flops(self) -> float:
        return flops_per_row(self.network)

    def cells(self) -> list[QualityCell]:
        return list(self._cells)

    def identify(self, cell: QualityCell) -> str:
        return cell.protocol.hash

    def weigh(self, cell: QualityCell) -> float:
        return cell.rows

    def measure(self, cell: QualityCell, advance: Advance) -> list[ResultRow]:
        """Returns the row of one cell; raises SettingError if the function returns no number."""
        images = cell.protocol.images
        assert isinstance(images, Drawn)
        draw, seeds = make_draw(images, self.network), images.run.seeds
        result = draw(seeds)
        value = torch.as_tensor(self.function(result.samples), dtype=torch.float64)
        if value.numel() != 1 or not bool(torch.isfinite(value)):
            what = float(value) if value.numel() == 1 else f"a tensor of shape {tuple(value.shape)}"
            raise SettingError(f"{self.sweep.metric} returns {what}; return one finite number")
        ledger = result.ledger
        effective = ledger.rows_per_image * ledger.effective_nfe / ledger.nfe
        cost = SamplingCost(
            nfe=ledger.nfe,
            rows=ledger.rows_per_image,
            effective=effective,
            flops=effective * self._flops,
            seconds=ledger.seconds / len(seeds),
        )
        clock = TimeSpent(sampling=ledger.seconds, total=ledger.seconds)
        return [ResultRow.now(cell.protocol, float(value), cost=cost, clock=clock)]
