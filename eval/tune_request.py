"""The request to find a plan; its options are defined here once."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from .options import (
    COUNTS,
    MOST_STEPS,
    OUTPUT,
    Batch,
    CfgScale,
    Device,
    Dtype,
    Model,
    option,
)
from .requests import DATA, METHOD, REFERENCE, SearchNoises

NOISES, FEWER = "512,128,512", "512,96,192"
CONVERGED, NEARLY = 60, 36  # evaluations
BRIEF = 180.0  # seconds; of a shorter budget not much may go into the reference
COST = "The most that a batch may cost; give one, or none for the whole front"


@dataclass(frozen=True, kw_only=True)
class TuneRequest(SearchNoises):
    """The search of the best plan for a cost; see `fewstep tune --help`.

    Give one of ms, nfe, rows, effective and flops, or none for the whole front.

    started: when the command began, as `time.perf_counter` tells it.
    """

    network: Model
    ms: float | None = option(None, "Milliseconds of a batch, decoding included.", COST)
    nfe: int | None = option(
        None,
        "Network evaluations of an image, guided ones counted once. Nothing is cached.",
        COST,
        within=(None, MOST_STEPS),
    )
    rows: int | None = option(
        None,
        "Network rows of an image, guided evaluations counted twice. Nothing is cached.",
        COST,
        within=(None, MOST_STEPS),
    )
    effective: float | None = option(
        None,
        "Evaluations of an image in units of a whole one: under guidance of both branches, under a"
        " cache of all blocks, by FLOPs.",
        COST,
    )
    flops: str | None = option(None, "FLOPs of an image, such as 2.5G.", COST)
    cfg_scale: CfgScale = 1.0
    budget: str = option(
        "5m",
        "A time for the whole command, such as 60s or 5m; or a number of candidates for each"
        " search, as candidates=500; or of network rows, as evals=2e6.",
        METHOD,
    )
    points: str = option(
        "3-6,8,10,14,20", "Without a cost: numbers of evaluations on the front.", METHOD
    )
    features: str = option(
        "auto",
        "The extractor with which images are compared with the reference's: small, emoji,"
        " inception, dinov2, clip or none. auto is one of the first two, if it fits.",
        METHOD,
    )
    weights: Path | None = option(
        None,
        "File with the weights of that extractor, if they are not found by themselves.",
        METHOD,
    )
    out: Path = option(
        Path("plan.json"),
        "The .json file that the plan is written to; of a front the names of all plans begin so.",
        OUTPUT,
    )
    report: Path | None = option(
        None,
        "The .json file that holds everything that was judged. By default its name is that of the"
        " plan with .report before .json.",
        OUTPUT,
    )
    html: Path | None = option(
        None,
        "The .html file for the report as a page: the front, and each plan with pictures.",
        OUTPUT,
    )
    log: Path | None = option(
        None,
        "Folder of the log, which several processes may share. By default it lies beside the plan.",
        OUTPUT,
    )
    noises: str | None = option(
        None,
        f"Numbers of noises to train on, to choose with and to test with. The default is {NOISES},"
        f" of a budget below {BRIEF / 60.0:g} minutes {FEWER}; there are fewer where the budget is"
        " too short for them.",
        DATA,
    )
    teacher_nfe: int | None = option(
        None,
        f"Number of network evaluations of the converged sampler. The default is {CONVERGED}, of a"
        f" budget below {BRIEF / 60.0:g} minutes {NEARLY}.",
        REFERENCE,
        within=COUNTS,
    )
    reference_end: float | None = option(
        None,
        "Time of the last node of the converged sampler before its end; see `fewstep search"
        " --help`.",
        REFERENCE,
    )
    batch: Batch = 1
    dtype: Dtype = "fp32"
    device: Device = "cpu"
    started: float = field(init=False, default_factory=lambda: time.perf_counter())

    @property
    def folder(self) -> Path:
        """Of the log, and what else is remembered."""
        return self.log or self.out.with_name(f"{self.out.stem}.tune")

    @property
    def report_path(self) -> Path:
        """Of the report."""
        return self.report or self.out.with_suffix(".report.json")

    @property
    def command(self) -> str:
        """The text that is typed for this request, without what is at its default."""
        words = ["fewstep tune", self.network]
        default = TuneRequest(network=self.network)
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name not in ("network", "started") and value != getattr(default, name):
                words.append(f"--{name.replace('_', '-')} {value}")
        return " ".join(words)
