"""The drawings of a plan: eight seeds beside the converged run, and what each step asked."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...models.ledger import CacheCall, Ledger
from ...models.schedule import TimeGrid
from ...samplers.images import draws_pictures, make_contact_sheet, to_pil
from ...samplers.run_settings import RunSettings
from ...samplers.sampler import Sampler
from ..search.problem import Problem
from .report import TuneReport

SEEDS = 8
MAGNIFIED = 4  # times, of the difference; grey is none
LARGEST = 128  # pixels a side of an image on the page
POINTS = 512  # samples of two numbers that are drawn
SCATTER, DOT = 480, 3  # pixels a side of their picture, and of half a point
GREY, BLUE = (150, 150, 150), (0, 114, 178)
POINTS_SHOWN = "this plan in blue, the converged run of the same noises in grey"


@dataclass(frozen=True)
class StripStep:
    """A step as it was run.

    time: where it begins. rows: of the network, per image.
    kind: "full", "forecast" where a cache ran parts or nothing, "mixed" where both, or "none".
    """

    time: float
    rows: float
    kind: str

    @property
    def words(self) -> str:
        """The step in words."""
        guided = "both branches" if self.rows >= 2.0 else "one branch"
        asks = {
            "none": "asks nothing",
            "full": f"{guided}, in full",
            "forecast": f"{guided}, forecast",
        }
        return asks.get(self.kind, f"{guided}, some forecast")


@dataclass(frozen=True)
class PlanDrawing:
    """The pictures of a plan as data URIs, by what they show, and its steps.

    missing: why there are no pictures, in words; empty if there are.
    """

    pictures: dict[str, str]
    steps: Sequence[StripStep]
    end: float
    missing: str = ""


def draw_plans(report: TuneReport, problem: Problem) -> Iterator[PlanDrawing]:
    """Yields what is shown of each plan of a report, on test noises: on the first, of images."""
    network, sampler, block = problem.network, Sampler(problem.network), problem.block("test")
    shown, points = draws_pictures(network), network.decode is None and network.shape == (2,)
    block = block.first(min(POINTS if points else SEEDS, len(block)))
    with torch.inference_mode():
        ends = block.ends.to(network.device)
        exact = (ends if network.decode is None else network.decode(ends)).float().cpu()
    given = {name: each for name, each in problem.conditions_of(block.seeds).items() if each}
    for written in report.plans:
        settings = written.plan.point.settings
        assert settings is not None
        call = {**settings.arguments(), **given, "batch": problem.batch}
        result = sampler(block.seeds, class_labels=block.labels, **call)
        grid = sampler.plan(**settings.choices()).grid
        pictures = dict(_show(result.samples, exact)) if shown else {}
        if points:
            pictures = {POINTS_SHOWN: scatter_points(result.samples, exact)}
        shape = "x".join(map(str, exact.shape[1:]))
        missing = "" if pictures else f"samples of {shape} numbers are no images and not drawn"
        yield PlanDrawing(pictures, list_steps(grid, result.ledger), grid.nodes[-1].t, missing)


def list_steps(grid: TimeGrid, ledger: Ledger) -> list[StripStep]:
    """Returns the steps of a run by what its ledger counted."""
    calls = [] if ledger.cache is None else ledger.cache.calls
    steps = []
    for n in range(grid.steps):
        rows = ledger.steps.get(n, 0) / ledger.images
        kinds = _find_kinds([call for call in calls if call.index == n])
        steps.append(StripStep(grid.nodes[n].t, rows, kinds if rows else "none"))
    return steps


def _find_kinds(calls: Sequence[CacheCall]) -> str:
    """Returns how the calls of a step were run; without a cache they are full."""
    full = {call.kind == "full" for call in calls}
    return "full" if full <= {True} else "forecast" if full == {False} else "mixed"


def describe_steps(settings: RunSettings, steps: Sequence[StripStep]) -> str:
    """Returns a plan in words: how many steps it has, and what they ask."""
    if settings.schedule is not None:
        how = "a table of weights"
    else:
        grid = "" if settings.grid is None else f" on the grid {settings.grid}"
        how = f"the solver {settings.solver}{grid}"
    parts = [f"{how}, {len(steps)} steps"]
    both = sum(step.rows >= 2.0 for step in steps)
    if both:
        parts.append(f"guided by a scale in {both} of them")
    forecast = sum(step.kind != "full" and step.rows > 0.0 for step in steps)
    if forecast:
        parts.append(f"{forecast} of them forecast by a cache")
    return ", ".join(parts)


def _show(samples: Tensor, exact: Tensor) -> Iterator[tuple[str, str]]:
    yield "converged run", _encode(exact)
    yield "this plan", _encode(samples)
    yield f"difference, {MAGNIFIED} times", _encode(MAGNIFIED * (samples - exact))


def scatter_points(samples: Tensor, exact: Tensor) -> str:
    """Returns points (n, 2), each joined with that of the converged run, as the URI of a PNG."""
    both = torch.stack([exact, samples.float().cpu()])
    low = both.amin((0, 1))
    span = float((both.amax((0, 1)) - low).max().clamp_min(1e-9))
    places = 2 * DOT + (both - low) * ((SCATTER - 4 * DOT) / span)
    places[..., 1] = SCATTER - places[..., 1]
    picture = Image.new("RGB", (SCATTER, SCATTER), "white")
    draw = ImageDraw.Draw(picture)
    for start, end in places.transpose(0, 1).tolist():
        draw.line((*start, *end), fill=GREY)
    for points, colour in zip(places.tolist(), (GREY, BLUE), strict=True):
        for x, y in points:
            draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=colour)
    return _write(picture)


def _encode(images: Tensor) -> str:
    """Returns images in a row as the data URI of a PNG."""
    pictures = to_pil(images.clamp(-1.0, 1.0))
    for picture in pictures:
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return _write(make_contact_sheet(pictures, len(pictures)))


def _write(picture: Image.Image) -> str:
    body = io.BytesIO()
    picture.save(body, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(body.getvalue()).decode()}"
