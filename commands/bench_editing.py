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
        None, "A solver; may be repeated. By default all kinds are tried.", SAMPLING
    )
    nfe: str = option("12,24,60", "Numbers of network evaluations each way.", SAMPLING)
    steps: str = option("15,30", "Numbers of steps each way.", SAMPLING)
    grid_type: GridOfAll = None
    t_min: float | None = option(
        None,
        "The time at which all runs end near the data, as `fewstep invert` takes it.",
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
    """Measures PSNR after inversion and reconstruction, for all solvers in one table."""
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
            "An editor, as `fewstep edit` takes it; may be repeated. By default all run.", SAMPLING
        ),
    ] = None,
    distance: Annotated[
        str, describe("How far edits are from their sources: lpips, ssim, rmse or rel-l2.", OUTPUT)
    ] = "lpips",
    strip: Annotated[
        Path | None,
        describe("Write a .png of sources, fresh samples and the edits of each editor.", OUTPUT),
    ] = None,
    quiet: QuietTable = False,
) -> None:
    """Measures class edits of real images: how many arrive, and what of the source they keep."""
    from ..eval.experiments.editing import EDITORS, ClassEdits, lines
    from ..models.files import check_writable

    if strip is not None:
        check_writable(strip, ".png")
    edits = ClassEdits(
        model=model, data=data, images=images, editors=tuple(editor or EDITORS), distance=distance
    )
    echo(lines(edits.run(strip, progress=not quiet), distance))
