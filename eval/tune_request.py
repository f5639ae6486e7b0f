"""The request to find a plan; its options are defined here once."""

from dataclasses import dataclass
from pathlib import Path

from .options import (
    COUNTS,
    MOST_STEPS,
    OUTPUT,
    WEIGHTS_FROM,
    Batch,
    CfgScale,
    Device,
    Dtype,
    LogFolder,
    Model,
    option,
)
from .requests import DATA, EXTRACTORS, METHOD, REFERENCE, SearchNoises

NOISES, FEWER = "512,128,512", "512,96,192"
CONVERGED, NEARLY = 60, 36  # evaluations
BRIEF = 180.0  # seconds; of a shorter budget not much may go into the reference
COST = "Limit of the cost: give one, or none for the whole front"


@dataclass(frozen=True, kw_only=True)
class TuneRequest(SearchNoises):
    """The search of the best plan for a cost; see `fewstep tune --help`.

    Give one of ms, nfe, rows, effective and flops, or none for the whole front.
    """

    network: Model
    ms: float | None = option(None, "Milliseconds for a batch, decoding included.", COST)
    nfe: int | None = option(
        None,
        "Network evaluations per image; a guided one counts once. No cache is tried.",
        COST,
        within=(None, MOST_STEPS),
    )
    rows: int | None = option(
        None,
        "Network rows per image; a guided evaluation counts twice. No cache is tried.",
        COST,
        within=(None, MOST_STEPS),
    )
    effective: float | None = option(
        None,
        "Effective evaluations per image: its FLOPs in units of one full evaluation, which runs"
        " every block, and both branches under guidance.",
        COST,
    )
    flops: str | None = option(None, "FLOPs per image, such as 2.5G.", COST)
    cfg_scale: CfgScale = 1.0
    budget: str = option(
        "5m",
        "Time for the whole command, such as 60s or 5m; or a number of candidates for each search,"
        " as candidates=500; or of network rows, as evals=2e6.",
        METHOD,
    )
    points: str = option(
        "3-6,8,10,14,20",
        "Without a cost: the numbers of network evaluations at which the front is measured.",
        METHOD,
    )
    features: str = option(
        "auto",
        "Extractor whose features compare images with those of the reference solution:"
        f" {EXTRACTORS}",
        METHOD,
    )
    weights: Path | None = option(
        None,
        f"File with the weights of that extractor{WEIGHTS_FROM}",
        METHOD,
    )
    out: Path = option(
        Path("plan.json"),
        "The .json file that the plan is written to. The names of a front's plans begin with it.",
        OUTPUT,
    )
    report: Path | None = option(
        None,
        "The .json file to write everything that was measured into. The default is --out with"
        " .report before .json.",
        OUTPUT,
    )
    html: Path | None = option(
        None,
        "The .html file to write the report into: the front, and each plan with pictures. By"
        " default none is written.",
        OUTPUT,
    )
    log: LogFolder = None
    noises: str | None = option(
        None,
        "Three numbers of noises: to train on, to validate with and to test with. The default is"
        f" {NOISES}, for a budget below {BRIEF / 60.0:g} minutes {FEWER}, and fewer if the budget"
        " is too short for them.",
        DATA,
    )
    teacher_nfe: int | None = option(
        None,
        f"Number of network evaluations of the reference solution. The default is {CONVERGED}, and"
        f" {NEARLY} for a budget below {BRIEF / 60.0:g} minutes.",
        REFERENCE,
        within=COUNTS,
    )
    reference_end: float | None = option(
        None,
        "Time of the reference solution's last node before its end; see `fewstep search --help`.",
        REFERENCE,
    )
    batch: Batch = 1
    dtype: Dtype = "fp32"
    device: Device = "cpu"

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
            if name != "network" and value != getattr(default, name):
                words.append(f"--{name.replace('_', '-')} {value}")
        return " ".join(words)
