"""The base of schedules as data: their times, how they are read, and what they are held to."""

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from ..models.caching import FixedMask
from ..models.denoiser import Network
from ..models.errors import FewstepError, ScheduleError, SettingError, shorten
from ..models.files import make_folder, write_bytes
from ..models.hub import download, is_hub_name
from ..models.probe import are_alike, hash_loaded, share_weights, sketch
from ..models.reading import StrictModel, parse_as, read_text
from ..models.schedule import NoiseSchedule, TimeGrid, process_of, share_path
from .base import Solver
from .correction import NAMED
from .mean_image import MeanImage
from .schedule_parts import Finite, Process
from .table import Table
from .table_steps import TableSteps

SCALE = "cfg_scale"  # in a provenance: the guidance scale it was searched for; 1 is none
ANSWER = "network_answer"  # in a provenance: the sketch of the network it was searched for
PARTS = "network_parts"  # in a provenance with a cache: parts of that network that can be skipped
LOADED = "network_weights"  # in a provenance with a cache: their `hash_loaded`
PUBLISHED = "schedule.json"  # in a folder; the name that a search gives its file
LARGEST = 2**24  # bytes of a file; the largest part is a mean image
KNOWN_SOURCES = (
    f"give a file, a folder or a repository on the Hub with a {PUBLISHED}, or a name of `fewstep"
    " list schedules`"
)
MAX_STEPS = 10_000  # beyond, float32 states round away more than further steps gain


class Artefact(StrictModel):
    """N steps over N + 1 times of a process, as a file holds them.

    process:    the noise schedule; a network on another path refuses this schedule.
    t:          N + 1 falling times of the process.
    nfe:        network evaluations; checked. A guided one counts once.
    provenance: where the schedule comes from; free-form, not part of its identity. `ANSWER` in it
                is the `sketch` of the network that it was searched for; others are refused.
    """

    format: Literal["solver-schedule"] = "solver-schedule"
    process: Process
    t: Annotated[tuple[Finite, ...], Field(min_length=2, max_length=MAX_STEPS + 1)]
    nfe: Annotated[int, Field(ge=0)]
    provenance: dict[str, Any] = Field(default_factory=dict)

    def __hash__(self) -> int:
        """Of what decides the run; equal schedules have equal ids."""
        return hash(self.schedule_id)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads and checks a JSON file, or the `schedule.json` of a folder.

        Raises:
            ScheduleError: with the first thing that is wrong.
        """
        path = Path(path) / PUBLISHED if Path(path).is_dir() else path
        try:
            text = read_text(path, "schedule", LARGEST)
        except SettingError as error:
            raise ScheduleError(f"{error}; {KNOWN_SOURCES}") from error
        try:
            return cls.parse(text, Path(path).parent)
        except ScheduleError as error:
            raise ScheduleError(f"{shorten(path)} is not a valid schedule: {error}") from error

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """Reads what `load` reads, or the `schedule.json` of a repository on the Hub.

        name: a file, a folder, or `owner/name` on the Hub, with `@revision` for one of its states.
            The repository is downloaded only if no folder has its name.

        Raises:
            ScheduleError: if there is none, or with the first thing that is wrong.
        """
        if Path(name).exists() or not is_hub_name(str(name)):
            return cls.load(name)
        try:
            folder = download(str(name), [PUBLISHED, NAMED.format("*")])
        except SettingError as error:
            raise ScheduleError(f"no schedule {shorten(name)}: {error}; {KNOWN_SOURCES}") from error
        return cls.load(folder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `schedule.json` into a folder, which may be uploaded to the Hub as it is.

        Raises:
            SettingError: if it cannot be written.
        """
        make_folder(Path(folder))
        self.write(Path(folder) / PUBLISHED)

    def write(self, path: Path) -> None:
        """Writes its JSON file, and what belongs beside it; raises SettingError if it cannot."""
        self.write_files(path.parent)
        write_bytes(path, self.dump().encode() + b"\n")

    def write_files(self, folder: Path) -> None:
        """Writes what belongs beside its JSON file."""

    @classmethod
    def parse(cls, text: str, folder: Path | None = None) -> Self:
        """Checks JSON text; raises ScheduleError with the first thing that is wrong.

        folder: that holds the weights of a correction, without which such a schedule is not run.
        """
        try:
            return parse_as(cls, text, folder)
        except SettingError as error:
            raise ScheduleError(str(error)) from error

    def dump(self) -> str:
        """Returns canonical JSON: sorted keys, floats in their shortest exact form."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, allow_nan=False)

    @property
    def schedule_id(self) -> str:
        """sha256 of the canonical JSON without its provenance."""
        body = self.model_dump(mode="json", exclude={"provenance"})
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    @abstractmethod
    def table(self) -> Table:
        """Returns what is run."""

    def make_solver(self) -> Solver[Any]:
        """Returns what runs it."""
        return Executor(self)

    @property
    @abstractmethod
    def rows(self) -> int:
        """Network rows per image: nfe, and one more for every guided evaluation."""

    @property
    @abstractmethod
    def guided(self) -> bool:
        """True if the schedule combines the branches of the network itself."""

    @property
    @abstractmethod
    def mean(self) -> MeanImage | None:
        """The tensor that stands for predictions that are not asked for; None for zero."""

    @property
    def cache_policy(self) -> FixedMask | None:
        """The cache that the schedule brings, without which it is not run; None for no cache."""
        return None

    @property
    def given(self) -> Tensor | None:
        """The same as float32; None for zero."""
        return None if self.mean is None else self.mean.tensor()

    def for_any(self) -> Self:
        """Returns the same schedule without the network and guidance scale that it is bound to.

        A cache stays bound to its number of blocks, without which its mask means nothing.
        """
        bound = {ANSWER, SCALE, LOADED}
        facts = {name: fact for name, fact in self.provenance.items() if name not in bound}
        return self.model_copy(update={"provenance": facts})

    def grid(self) -> TimeGrid:
        """Returns the grid that the steps run over."""
        return TimeGrid.of(self.process.schedule(), self.t)

    def check_process(self, schedule: NoiseSchedule) -> None:
        """Raises ScheduleError if a network's noise schedule is not the one this was made for."""
        if not share_path(self.process.schedule(), schedule):
            raise ScheduleError(
                f"this schedule was made for process {_brief(self.process)}, but the network's is"
                f" {_brief(Process.model_validate(process_of(schedule)))}; use a schedule made for"
                " this network"
            )

    def check_network(self, network: Network) -> None:
        """Raises ScheduleError if the schedule was searched for a network that answers otherwise.

        That is one evaluation of one row, outside the run and its counts; schedules that do not say
        what their network answered, such as those of named solvers, are for any.
        """
        _check_mean(None if self.mean is None else self.mean.shape, network)
        expected, loaded = self.provenance.get(ANSWER), self.provenance.get(LOADED)
        answer = None if expected is None else sketch(network)
        if answer is not None and expected is not None and not are_alike(answer, expected):
            name = self.provenance.get("model", "?")
            raise ScheduleError(
                f"this schedule was searched for another network ({name}): {network.name} answers a"
                " fixed noise otherwise; run `fewstep search` for it, or add --force (in Python"
                " schedule.for_any()) to use the schedule all the same"
            )
        if loaded is not None and not share_weights(hash_loaded(network), loaded):
            raise ScheduleError(
                f"the cache of this schedule was searched for other weights of {network.name}: a"
                " LoRA was fused, or layers have changed; undo that, run `fewstep search` for the"
                " network as it is, or add --force (in Python schedule.for_any())"
            )

    def check_times(self, steps: int, nfe: int) -> None:
        """Raises ValueError unless the times are as many as the steps need, and fall apart."""
        try:
            self.grid().check_gaps()
        except FewstepError as error:
            raise ValueError(str(error)) from error
        if len(self.t) != steps + 1:
            raise ValueError(f"{steps} steps need {steps + 1} times, but there are {len(self.t)}")
        if self.nfe != nfe:
            raise ValueError(f"nfe is {self.nfe}, but the steps take {nfe}")

    def check_evaluation(self, t: float, name: str) -> None:
        """Raises ValueError unless an evaluation is inside the process, at sigma > 0."""
        try:
            inside = self.process.schedule().at(t).sigma > 0.0
        except FewstepError:
            inside = False
        if not inside:
            raise ValueError(f"{name} moves the evaluation to t={t:g}, outside the process")

    @model_validator(mode="after")
    def _bonds_are_numbers(self) -> Self:
        scale = self.provenance.get(SCALE)
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
            raise ValueError(f"{SCALE} in the provenance must be a number")
        answer = self.provenance.get(ANSWER)
        numbers = isinstance(answer, list | tuple) and all(
            isinstance(each, int | float) for each in answer
        )
        if answer is not None and not numbers:
            raise ValueError(f"{ANSWER} in the provenance must be a list of numbers")
        loaded = self.provenance.get(LOADED)
        if loaded is not None and not _are_texts(loaded):
            raise ValueError(f"{LOADED} in the provenance must be a list of texts")
        return self


class Executor(TableSteps):
    """Runs the table of a schedule."""

    def __init__(self, schedule: Artefact) -> None:
        self.schedule = schedule
        super().__init__(schedule.table())

    def check_network(self, network: Network) -> None:
        """As `Artefact.check_network`, of the schedule that is run."""
        self.schedule.check_network(network)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _check_mean(given: tuple[int, ...] | None, network: Network) -> None:
    """Raises ScheduleError unless what stands for predictions broadcasts to a sample."""
    if given is None:
        return
    shape = network.shape
    same = all(g in (1, n) for g, n in zip(reversed(given), reversed(shape), strict=False))
    if len(given) > len(shape) or not same:
        raise ScheduleError(
            f"the mean in this schedule has shape {given}, but samples of {network.name} have"
            f" {shape}; use a schedule made for this network"
        )


def _brief(process: Process) -> str:
    params = ", ".join(f"{k}={v}" for k, v in process.params.items() if not isinstance(v, list))
    return f"{process.family}({params})"
