"""`fewstep.compare`: one network on the same seeds under several settings."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor

from ..models.arguments import Integers, as_integers
from ..models.errors import SettingError
from ..models.ledger import Ledger
from ..models.network import Network
from ..samplers.columns import Column
from ..samplers.guidance import CFG
from ..samplers.noise import check_seeds
from ..samplers.plan_file import Spread
from ..samplers.sampler import Result, Sampler
from .bench.table import align_table, format_number, format_range
from .comparison_settings import Choices, find_scale, name_settings
from .teacher import teacher

PairFigure = Callable[[Tensor, Tensor], Tensor | float]
CONVERGED: Choices = {"solver": "unipc-3", "nfe": 200}
HEADER = (
    "setting",
    "distance",
    "95 % interval",
    "to first",
    "NFE",
    "rows",
    "effective",
    "ms/image",
)


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A setting and what it drew.

    name:     of the setting. choices: what the sampler was called with.
    samples:  (n, *) float32, one for each seed.
    ledger:   what they cost.
    distance: from the converged run of the same guidance scale; to_first: from the first setting.
    ms:       milliseconds of an image, of runs in turns.
    figures:  of the caller's metrics, by name.
    """

    name: str
    choices: Choices
    samples: Tensor
    ledger: Ledger
    distance: Column
    to_first: Column
    ms: Spread
    figures: Mapping[str, float]

    def cells(self) -> list[str]:
        """Returns its row of the table."""
        distance, ledger = self.distance, self.ledger
        return [
            self.name,
            format_number(distance.value),
            format_range((distance.low, distance.high)),
            format_number(self.to_first.value),
            f"{ledger.nfe:g}",
            f"{ledger.rows_per_image:g}",
            f"{ledger.effective_nfe:.4g}",
            f"{self.ms.median:.3g} ({self.ms.low:.3g}..{self.ms.high:.3g})",
            *map(format_number, self.figures.values()),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures in full."""
        ledger = self.ledger
        return {
            "setting": self.name,
            "distance": self.distance.model_dump(),
            "to_first": self.to_first.model_dump(),
            "nfe": ledger.nfe,
            "rows": ledger.rows_per_image,
            "effective": ledger.effective_nfe,
            "ms": self.ms.model_dump(),
            "figures": dict(self.figures),
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs of one network on the same seeds.

    network:   its name. seeds: of the samples.
    reference: (n, *), the converged run of the first setting's guidance scale.
    runs:      in the order in which they were given.
    """

    network: str
    seeds: Sequence[int]
    reference: Tensor
    runs: Sequence[ComparedRun] = field(repr=False)

    def table(self) -> str:
        """Returns all figures in Markdown, which is straight as plain text too."""
        header = [*HEADER, *self.runs[0].figures]
        return "\n".join(align_table([header, *(run.cells() for run in self.runs)]))

    def as_json(self) -> str:
        """Returns all figures in full."""
        body = {"network": self.network, "seeds": list(self.seeds)}
        return json.dumps({**body, "runs": [run.as_dict() for run in self.runs]}, indent=2)

    def save(self, path: str | Path, *, images: int = 8) -> None:
        """Writes a picture: the converged run, and below it a row for each setting.

        path:   .png, or for samples that are points of two numbers .png, .svg or .pdf.
        images: how many are shown, from the first seed.

        Raises:
            SettingError: if it cannot be written, or the samples are neither images nor points.
        """
        from .comparison_picture import draw_comparison

        draw_comparison(self, Path(path), images)


def compare(
    network: Network | str | Path,
    settings: Mapping[str, Choices] | Sequence[Choices],
    *,
    seeds: Integers = range(16),
    class_labels: Integers | None = None,
    metrics: Mapping[str, PairFigure] | None = None,
    converged: Choices = CONVERGED,
    repeats: int = 3,
    batch: int = 32,
) -> Comparison:
    """Draws the same seeds under several settings, and measures how far they lie apart.

    >>> settings = [{"solver": "unipc-2", "nfe": 5}, {"solver": "dpmpp-2m", "nfe": 5}]
    >>> comparison = fewstep.compare("fashion-dit", settings, seeds=range(8))
    >>> print(comparison.table()); comparison.save("compared.png")

    Args:
        network: a `Network`, or what `load` takes by name.
        settings: what `Sampler` is called with, such as {"solver": "unipc-2", "nfe": 5, "guidance":
            "cfg:scale=2"} or {"plan": "plan.json"}; by name, or in a row, where it names itself.
        seeds: one per image. class_labels: one for all or one per image; by default all classes in
            turn.
        metrics: figures of your own by name: functions of the samples (n, *) and of those of the
            converged run, which return one number, or one for each sample, whose mean stands.
        converged: what the run is drawn with that settings are compared with, each under its
            guidance scale; its solver is unipc-3 where nothing else is said.
        repeats: how often each is run for its time, all in turn. batch: images sampled at once.

    Raises:
        FewstepError: for a setting that cannot be run, before any is drawn in full.
    """
    sampler = Sampler.from_pretrained(network)
    named, drawn = name_settings(settings), check_seeds(seeds)
    if class_labels is not None:
        class_labels = as_integers(class_labels, "class_labels", len(drawn))
    elif classes := sampler.network.num_classes:
        class_labels = [seed % classes for seed in drawn]
    if not {"solver", "recipe", "plan"} & converged.keys():
        converged = {"solver": CONVERGED["solver"], **converged}
    session = _Session(sampler, drawn, {"class_labels": class_labels, "batch": batch}, converged)
    for choices in named.values():
        session.try_out(choices)
    results = {name: session.draw(choices) for name, choices in named.items()}
    first, runs = next(iter(results.values())).samples, []
    times = session.time(named, repeats)
    for name, choices in named.items():
        samples, exact = results[name].samples, session.converge(find_scale(choices))
        runs.append(
            ComparedRun(
                name=name,
                choices=choices,
                samples=samples,
                ledger=results[name].ledger,
                distance=measure_distance(samples, exact),
                to_first=measure_distance(samples, first),
                ms=_spread(times[name] or [session.per_image(results[name])]),
                figures=dict(_judge(metrics or {}, samples, exact)),
            )
        )
    return Comparison(
        sampler.network.name, drawn, session.converge(find_scale(runs[0].choices)), runs
    )


@dataclass(eq=False)
class _Session:
    """The seeds of a comparison and what they are drawn with; converged runs are kept by scale."""

    sampler: Sampler
    seeds: Sequence[int]
    call: Choices
    converged: Choices
    known: dict[float, Tensor] = field(default_factory=dict)

    def try_out(self, choices: Choices) -> None:
        """Raises FewstepError for a setting that cannot be run; it draws the first seed."""
        labels = self.call["class_labels"] and self.call["class_labels"][:1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are told when it is drawn
            self.sampler(self.seeds[:1], **{**self.call, "class_labels": labels, **choices})

    def draw(self, choices: Choices) -> Result:
        """Returns what a setting draws."""
        return self.sampler(self.seeds, **{**self.call, **choices})

    def time(self, settings: Mapping[str, Choices], repeats: int) -> dict[str, list[float]]:
        """Returns milliseconds of an image of each setting, of runs in turns."""
        times: dict[str, list[float]] = {name: [] for name in settings}
        for _ in range(repeats):
            for name, choices in settings.items():
                times[name].append(self.per_image(self.draw(choices)))
        return times

    def per_image(self, result: Result) -> float:
        """Returns milliseconds of an image of a run."""
        return 1e3 * result.ledger.seconds / len(self.seeds)

    def converge(self, scale: float) -> Tensor:
        """Returns the samples of the converged run under a guidance scale."""
        if scale not in self.known:
            call = {**self.call, **({} if scale == 1.0 else {"guidance": CFG(scale)})}
            self.known[scale] = teacher(
                self.sampler.network, self.seeds, **{**call, **self.converged}
            )
        return self.known[scale]


def measure_distance(samples: Tensor, target: Tensor) -> Column:
    """Returns the root mean square distance of samples (n, *) from others, over the noises."""
    return Column.of((samples.double() - target.double()).square().flatten(1).mean(1))


def _judge(
    metrics: Mapping[str, PairFigure], samples: Tensor, reference: Tensor
) -> Iterator[tuple[str, float]]:
    """Yields the figure of each metric; raises SettingError for what is no number."""
    for name, function in metrics.items():
        value = torch.as_tensor(function(samples, reference), dtype=torch.float64)
        if value.shape not in ((), (len(samples),)):
            raise SettingError(
                f"the metric {name!r} returns numbers of shape {tuple(value.shape)}; return one, or"
                f" one for each of {len(samples)} samples"
            )
        yield name, float(value.mean())


def _spread(values: Sequence[float]) -> Spread:
    repeats = len(values)
    values = [*values, *values] if repeats == 1 else values
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(median=middle, low=low, high=high, repeats=repeats)
