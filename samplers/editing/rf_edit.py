"""RF-Edit: inversion and resampling that share the values of self-attention.

In the last `inject` steps of the inversion, those at the noise, V of the tapped layers is recorded;
in the first `inject` steps of the edit it takes the place of the network's own (arXiv:2411.04746).
The key is (interval, calls left in the step, layer), with intervals counted from the noise: what
the inversion evaluated at the clean end of an interval serves the edit at its noisy end, and both
meet in the middle. FireFlow and Uni-Inv have fewer calls in most steps; what only one of the two
passes has is not recorded, and the network's own V is used there.
"""

from collections.abc import Callable
from dataclasses import dataclass as plain
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ...models.architectures.base import TEXT
from ...models.attention import Mode, Place, Tape, ValueStorage, find_projections, holds_text
from ...models.denoiser import Branch, Network
from ...models.errors import SettingError
from ...models.modules import hold
from ...models.schedule import Node
from ..conditions import Branches, tell_scale
from ..guidance import CFG
from ..inversion import walk
from ..inversion_plan import InversionPlan, plan_inversion
from ..loop import integrate
from .base import EditorInfo, Steps, register
from .scene import Scene, check_guided


@register
@dataclass(frozen=True)
class RFEdit:
    """solver:   any of `inversion_plan.list_invertible`.
    steps:    of each way.
    inject:   steps in which V is shared, at most `steps`; 0 is inversion and sampling.
    guidance: scale on the way back; the inversion has none. Networks that are told a scale are told
              this one, and 1 on the way there.
    layers:   numbers of the self-attention layers; None for the architecture's own choice.
    store:    "auto", "cpu" (pinned host memory) or "device".
    grid:     a name, as `plan_inversion` takes it.
    t_min:    of the clean end, as `plan_inversion` takes it.
    """

    info: ClassVar[EditorInfo] = EditorInfo(name="rf-edit", source="arXiv:2411.04746")
    solver: str = "rf-solver"
    steps: Steps = 15
    inject: Annotated[int, Field(ge=0)] = 2
    guidance: float = 2.0
    layers: tuple[int, ...] | None = None
    store: ValueStorage = ValueStorage.AUTO
    grid: str | None = None
    t_min: float | None = None

    def edit(self, scene: Scene) -> Tensor:
        target, scale = tell_scale(scene.network, scene.target, self.guidance)
        check_guided(target, scale, scene.network.name)
        way = plan_inversion(
            scene.network,
            self.solver,
            steps=self.steps,
            grid=self.grid,
            t_min=self.t_min,
        )
        if not self.inject:
            return self._resample(scene, way, self._invert(scene, way, None), None)
        taps = find_projections(scene.network.module, self.layers)
        _check_texts(scene, target if scale != 1.0 else {Branch.COND: target[Branch.COND]})
        tape = Tape(taps, list_shared_places(way, self.inject), self.store)
        with hold(scene.network.module, alone=True), tape.on():
            noise = self._invert(scene, way, tape)
            edited = self._resample(scene, way, noise, tape)
            tape.check()
        scene.bytes_held, scene.bytes_predicted = tape.bytes_held, tape.bytes_predicted
        return edited

    def _invert(self, scene: Scene, way: InversionPlan, tape: Tape | None) -> Tensor:
        """Returns the noise that the source image comes from."""
        counted, start = _attach_counter(scene.network, tape, Mode.RECORD, way.calls()[0])
        last = way.grid.steps - 1
        start(0, last)
        x = scene.image * way.rising[0].alpha
        denoiser = scene.make_denoiser(scene.source, counted)
        return walk(denoiser, way, x, lambda n, _: start(n + 1, last - n - 1))

    def _resample(
        self, scene: Scene, way: InversionPlan, noise: Tensor, tape: Tape | None
    ) -> Tensor:
        """Returns the image of the target."""
        counted, start = _attach_counter(scene.network, tape, Mode.REPLACE, way.calls()[1])
        start(0, 0)
        target, scale = tell_scale(scene.network, scene.target, self.guidance)
        x = integrate(
            scene.make_denoiser(target, counted),
            way.back.on(way.grid),
            way.grid,
            noise,
            CFG(scale),
            callback=lambda n, *_: start(n + 1, n + 1),
        )
        return x / way.grid.nodes[-1].alpha


def list_shared_places(way: InversionPlan, inject: int) -> frozenset[Place]:
    """Returns the places in the `inject` noisiest intervals at which both ways evaluate.

    Raises:
        SettingError: if there are fewer intervals.
    """
    if inject > way.grid.steps:
        raise SettingError(f"inject={inject} is more than the {way.grid.steps} steps of the run")
    there, back = way.calls()
    least = [min(a, b) for a, b in zip(reversed(there), back, strict=True)]
    return frozenset((i, stage) for i in range(inject) for stage in range(least[i]))


def _check_texts(scene: Scene, target: Branches) -> None:
    """Raises SettingError if V holds texts of more than one length, before anything is run."""
    module = scene.network.module
    if module is None or not holds_text(module):
        return
    branches = [scene.source[Branch.COND], *target.values()]
    lengths = {each[TEXT].shape[1] for each in branches if TEXT in each}
    if len(lengths) > 1:
        raise SettingError(
            f"V of {scene.network.name} holds the tokens of the text, and these are"
            f" {' and '.join(map(str, sorted(lengths)))} tokens long: pad the embeddings to one"
            " length, or give the prompts themselves, which the pipeline pads"
        )


@plain
class _Counter:
    """Tells a tape the place of every call; counts[n] are the calls of step n."""

    tape: Tape
    mode: Mode
    counts: list[int]
    interval: int = 0
    left: int = 0

    def start(self, n: int, interval: int) -> None:
        if n < len(self.counts):
            self.interval, self.left = interval, self.counts[n]

    def of(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, node: Node, conditions: Any) -> Tensor:
            self.left -= 1
            self.tape.mode, self.tape.place = self.mode, (self.interval, self.left)
            try:
                return forward(x, node, conditions)
            finally:
                self.tape.mode = Mode.OFF

        return call


def _attach_counter(
    network: Network, tape: Tape | None, mode: Mode, counts: list[int]
) -> tuple[Network, Callable[[int, int], None]]:
    """Returns the network followed by a tape, and the function to call as each step starts."""
    if tape is None:
        return network, lambda n, interval: None
    counter = _Counter(tape, mode, counts)
    return replace(network, forward=counter.of(network.forward)), counter.start
