"""Options of `sample` for what is run, and the run that they stand for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..eval.options import (
    DEFAULT_MODEL,
    GUIDANCE,
    READY,
    SAMPLING,
    BatchSampled,
    CfgInterval,
    ChannelsLast,
    Compile,
    CudaGraph,
    Device,
    Dtype,
    Ending,
    GridType,
    Model,
    Steps,
    option,
)
from ..models.errors import SettingError
from .images import ImageOptions
from .measurement import MeasurementOptions

if TYPE_CHECKING:
    from ..models.denoiser import Network
    from ..models.speed import Speed
    from ..samplers.run_record import Run
    from ..solvers import Schedule


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """The choices of a run as they are typed; `Run` is the same as it is recorded."""

    model: Model = DEFAULT_MODEL
    solver: str | None = option(
        None,
        "The solver, as name[:key=value,...]; see `fewstep list solvers`. The default is a schedule"
        " that was searched for the network and --nfe, if there is one, and unipc-2 otherwise.",
        SAMPLING,
    )
    nfe: int | None = option(
        None, "Number of network evaluations for each image, at most. The default is 10.", SAMPLING
    )
    steps: Steps = None
    grid_type: GridType = None
    times: str | None = option(
        None,
        "The times between the steps, from noise to data, such as 1,0.8,0.5,0, in place of a grid.",
        SAMPLING,
    )
    final: Ending = "zero"
    schedule: str | None = option(
        None,
        "A searched schedule, in place of a solver: a .json file, a folder or Hub id (owner/name)"
        " with a schedule.json, or a name of `fewstep list schedules`.",
        READY,
    )
    recipe: str | None = option(
        None,
        "The solver and the times of a distilled network, by the name of its recipe; see `fewstep"
        " list recipes`.",
        READY,
    )
    plan: Path | None = option(
        None,
        "A .json file of `fewstep tune`, in place of solver, grid, guidance and cache.",
        READY,
    )
    cache: str | None = option(
        None,
        "A cache of blocks of the network, as name[:key=value,...]; see `fewstep list caches`. It"
        " may also be a .json file of `fewstep calibrate`.",
        SAMPLING,
    )
    noise: str | None = option(
        None,
        "How a stochastic solver draws its noise: fresh draws anew in each step; brownian follows"
        " one path for each seed, so that runs with more steps converge to one image. The default"
        " is fresh.",
        SAMPLING,
    )
    low_noise: str | None = option(
        None,
        "For a model of two networks, such as Wan 2.2: the settings of the one for low noise, as"
        " key=value,... The keys are guidance, cache, solver, history and boundary, as in"
        r" guidance=\[cfg:scale=3],solver=euler.",
        SAMPLING,
    )
    force: bool = option(
        False,
        "Accept a schedule, a cache or a plan that was made for another network or guidance, a"
        " recipe at another number of steps, and with --from-png a network with other weights.",
        READY,
        "--force",
    )
    cfg_scale: float | None = option(
        None,
        "Scale of classifier-free guidance; 1 turns it off. The default is 2 for emoji without"
        " --guidance, --schedule and --recipe, and 1 otherwise.",
        GUIDANCE,
    )
    cfg_interval: CfgInterval = None
    guidance: str | None = option(
        None, "The guidance, as name[:key=value,...]; see `fewstep list guidance`.", GUIDANCE
    )
    threshold: float | None = option(
        None,
        "Quantile for dynamic thresholding of the predicted image, such as 0.995. By default"
        " nothing is thresholded.",
        GUIDANCE,
    )
    batch: BatchSampled = 32
    dtype: Dtype = "fp32"
    device: Device = "cpu"
    compile_: Compile = False
    channels_last: ChannelsLast = False
    cuda_graph: CudaGraph = False

    @property
    def speed(self) -> "Speed | None":
        """The form in which the network is run; None for as it is."""
        chosen = self.compile_, self.channels_last, self.cuda_graph
        if not any(chosen):
            return None
        from ..models.speed import Speed

        return Speed(*chosen)

    def load(self) -> "Network":
        """Returns the network; raises FewstepError if there is none such, or options disagree."""
        from ..models.load import load

        if self.force and {self.schedule, self.cache, self.recipe, self.plan} == {None}:
            raise SettingError(
                "--force is for --schedule, --cache, --recipe, --plan and --from-png; give one of"
                " them"
            )
        return load(self.model, dtype=self.dtype, device=self.device, speed=self.speed)

    def _grid(self) -> str | tuple[float, ...] | None:
        """Returns the grid's name or its times; raises SettingError for both."""
        from ..models.arguments import parse_times

        if self.times is None:
            return self.grid_type
        if self.grid_type is not None:
            raise SettingError("--times and --grid both say where the steps lie; drop one of them")
        return parse_times(self.times)

    def _resolve(self, network: "Network") -> dict[str, Any]:
        """Returns solver, grid and size of the run, as its recipe or the network decides them."""
        from ..samplers.distilled import resolve_choices

        if self.recipe is not None and self.schedule is not None:
            raise SettingError("--recipe and --schedule both decide the steps; drop one of them")
        typed = {"solver": self.solver, "grid": self._grid(), "nfe": self.nfe, "steps": self.steps}
        if self.recipe is None:
            return typed if self.schedule else resolve_choices(network, typed)
        joint = "," if ":" in self.recipe else ":"
        recipe = f"{self.recipe}{joint}force=true" if self.force else self.recipe
        given = {**typed, "recipe": recipe, "final": self.final}
        return {"recipe": recipe, **resolve_choices(network, given)}

    def find_scale(self, network: "Network", classes: str | None) -> float:
        """Returns the guidance scale that was typed, or the network's own where nothing else is."""
        if self.cfg_scale is not None:
            return self.cfg_scale
        from ..solvers import take_solver

        chosen = (self.guidance, self.schedule, self.recipe) != (None, None, None)
        chosen |= self.solver is not None and take_solver(self.solver).info.guided
        guided = not chosen and classes != "null"
        return network.cfg_scale if guided else 1.0

    def _read_settings(self, network: "Network", classes: str | None) -> dict[str, Any]:
        """Returns the settings of the run as they were typed, without the cache."""
        from ..models.arguments import parse_interval

        return {
            **self._resolve(network),
            "final": self.final,
            "schedule": None if self.schedule is None else _schedule(self.schedule, self.force),
            "cfg_scale": self.find_scale(network, classes),
            "cfg_interval": None
            if self.cfg_interval is None
            else parse_interval(self.cfg_interval),
            "guidance_spec": self.guidance,
            "threshold": self.threshold,
        }

    def record(
        self, network: "Network", images: ImageOptions, measurement: MeasurementOptions
    ) -> "Run":
        """Returns the run of the network that was asked for, with nothing left open."""
        from ..samplers.cache_file import resolve_cache
        from ..samplers.plan_file import PlanFile
        from ..samplers.run_record import Run

        seeds, labels, columns = images.choose(network)
        if self.plan is None:
            settings = self._read_settings(network, images.classes)
        else:
            plan, batch = PlanFile.load(self.plan), min(self.batch, len(seeds))
            settings = dict(plan.bind(network, batch, force=self.force))
        run = Run(
            model=self.model,
            **settings,
            low_noise=self.low_noise,
            seeds=seeds,
            classes=labels,
            noise=None if self.noise == "fresh" else self.noise,
            measured=measurement.record(),
            batch=self.batch,
            dtype=self.dtype,
            device=self.device,
            speed=self.speed,
            columns=columns,
        ).settle(network.schedule)
        if self.cache is None:
            return run
        return run.model_copy(update={"cache": resolve_cache(self.cache, network, run, self.force)})


def _schedule(name: str, force: bool) -> "Schedule":
    from ..samplers.schedule_choice import find_schedule

    schedule = find_schedule(name)
    return schedule.for_any() if force else schedule
