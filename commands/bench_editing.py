"""`fewstep bench inversion` and `fewstep bench edit`: pictures there and back, and changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..eval.options import (
    GREY_MODEL,
    OUTPUT,
    SAMPLING,
    Batch,
    FirstImages,
    GridOfAll,
    LabelledData,
    Model,
    QuietTable,
    StoreFile,
    describe,
    option,
)
from .console import echo, gather_options, take_given

if TYPE_CHECKING:
    from ..eval.experiments.inversion import RoundTrips


@dataclass
class InversionOptions:
    """The runs of `fewstep bench inversion`."""

    model: Model = GREY_MODEL
    data: LabelledData = "fashion-mnist-32:test"
    images: FirstImages = 256
    solver: list[str] | None = option(
        None,
        "A solver, as name[:key=value,...]; may be repeated. By default one of each kind is tried.",
        SAMPLING,
    )
    nfe: str = option(
        "12,24,60", "Numbers of network evaluations in each direction, such as 12,24.", SAMPLING
    )
    steps: str = option(
        "15,30", "Numbers of steps in each direction, measured beside --nfe.", SAMPLING
    )
    grid_type: GridOfAll = None
    t_min: float | None = option(
        None,
        "Time that the pictures are placed at in all runs, as `fewstep invert` takes it.",
        SAMPLING,
    )
    batch: Batch = 32

    def table(self) -> "RoundTrips":
        """Returns the table to be measured; raises FewstepError for what is no number."""
        from ..eval.experiments.inversion import RoundTrips

        given = take_given(self, ("nfe", "steps"), solver="solvers", grid_type="grid")
        return RoundTrips(**given)


@gather_options
def inversion(
    options: InversionOptions, store: StoreFile = Path("inversion.jsonl"), quiet: QuietTable = False
) -> None:
    """Measures how well pictures are restored after inversion, in PSNR, for many solvers."""
    from ..eval.bench.runner import run_all
    from ..eval.experiments.inversion import InversionBench, lines

    bench = InversionBench(options.table(), store)
    run_all(bench, progress=not quiet)
    echo(lines(bench.rows()))


def edit(
    model: Model = GREY_MODEL,
    data: LabelledData = "fashion-mnist-32:test",
    images: FirstImages = 40,
    editor: Annotated[
        list[str] | None,
        describe(
            "An editor, as `fewstep edit` takes it; may be repeated. By default all are measured.",
            SAMPLING,
        ),
    ] = None,
    distance: Annotated[
        str,
        describe("Metric between an edit and its source: lpips, ssim, rmse or rel-l2.", OUTPUT),
    ] = "lpips",
    strip: Annotated[
        Path | None,
        describe(
            "The .png file to draw sources, fresh samples and the edits of each editor into.",
            OUTPUT,
        ),
    ] = None,
    quiet: QuietTable = False,
) -> None:
    """Measures class edits of real images: how many succeed, and how near they stay."""
    from ..eval.experiments.editing import EDITORS, ClassEdits, lines
    from ..models.files import check_writable

    if strip is not None:
        check_writable(strip, ".png")
    edits = ClassEdits(
        model=model, data=data, images=images, editors=tuple(editor or EDITORS), distance=distance
    )
    echo(lines(edits.run(strip, progress=not quiet), distance))
