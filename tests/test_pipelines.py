"""`SolverScheduler` inside diffusers pipelines, with tiny random networks."""

import inspect
import math
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import tiny
import torch
from tiny_pipes import PIPES, call, ours_like, pipeline, reference, times_of, vae
from torch import Tensor

from fewstep import CFG, Interval, SolverScheduler, guided
from fewstep.models.errors import SettingError

STEPS = 4


def fitted(name: str, **own):
    pipe = pipeline(name)
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, **own)
    return pipe


def tensor(x) -> Tensor:
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def counted(pipe) -> SimpleNamespace:
    """Counts the calls of a pipeline's network."""
    found = SimpleNamespace(calls=0)

    def count(*_) -> None:
        found.calls += 1

    module = getattr(pipe, "transformer", None) or pipe.unet
    module.register_forward_pre_hook(count)
    return found


def steps_of(name: str) -> int:
    return int(STEPS * PIPES[name].call.get(strength_key(name), 1.0))


def strength_key(name: str) -> str:
    return "denoise_strength" if name == "ltx-condition" else "strength"


@pytest.mark.parametrize("name", PIPES)
def test_the_image_is_that_of_the_scheduler_of_diffusers(name):
    """The same solver on the same grid: what remains is rounding, as labels and sigmas are float32
    there, and random networks enlarge it."""
    pipe = pipeline(name, scheduler=reference(name))
    wanted = tensor(call(name, pipe, num_inference_steps=STEPS))
    pipe.scheduler = ours_like(pipe.scheduler)
    found = tensor(call(name, pipe, num_inference_steps=STEPS))
    assert pipe.scheduler.nfe == steps_of(name)
    assert (found - wanted).abs().max() < 2e-4 * wanted.abs().max()


COUNTED = [(name, solver) for name in PIPES for solver in ("heun", "unipc-3")]
COUNTED.remove(("flux-img2img", "heun"))  # it takes half of seven evaluations; see below
COUNTED.remove(("kandinsky-img2img", "heun"))  # it skips as many evaluations as it should steps


@pytest.mark.parametrize(("name", "solver"), COUNTED)
def test_calls_callbacks_and_bars_are_counted_right(name, solver):
    pipe, ticks = fitted(name, solver=solver), []
    count = counted(pipe)
    pipe.progress_bar = lambda *args, total=None, **own: Bar(ticks, total or len(args[0]), *args)
    found = tensor(call(name, pipe, num_inference_steps=STEPS))
    assert found.isfinite().all()
    calls = len(pipe.scheduler.timesteps) - (pipe.scheduler.begin_index or 0)
    assert pipe.scheduler.nfe == calls
    assert count.calls in (calls, 2 * calls)  # some call the network once per branch
    assert calls == steps_of(name) if solver == "unipc-3" else calls == 2 * steps_of(name) - 1
    assert sum(ticks) == ticks_of(pipe, steps_of(name), calls)


class Bar:
    """A progress bar that notes how it was moved."""

    def __init__(self, ticks: list[int], total: int, entries=()) -> None:
        self.ticks, self.total, self.entries = ticks, total, entries

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def __iter__(self):
        for entry in self.entries:
            self.ticks.append(1)
            yield entry

    def update(self, n: int = 1) -> None:
        self.ticks.append(n)


def ticks_of(pipe, steps: int, calls: int) -> int:
    """Pipelines that pass sigmas take evaluations for steps, and so do bars over timesteps."""
    return (
        calls
        if pipe.scheduler.order == 1 or "for t in self.progress_bar" in source(pipe)
        else steps
    )


def source(pipe) -> str:
    return inspect.getsource(type(pipe).__call__)


def test_running_twice_gives_the_same_bits():
    for name in ("sd", "flux"):
        pipe = fitted(name, solver="unipc-3")
        assert torch.equal(*(call(name, pipe, num_inference_steps=4) for _ in range(2)))


def test_stochastic_solvers_draw_from_the_generators_of_the_pipeline():
    """In a list each row has its own, so an image does not depend on its batch."""
    pipe = fitted("sd", solver="sde-dpmpp-2")

    def images(*seeds: int) -> Tensor:
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        return call(
            "sd", pipe, num_inference_steps=3, num_images_per_prompt=len(own), generator=own
        )

    both = images(1, 2)
    scale = both.abs().max()
    for k, seed in enumerate((1, 2)):
        assert (images(seed)[0] - both[k]).abs().max() < 1e-4 * scale
    assert (both[0] - both[1]).abs().max() > 0.01 * scale


def test_eta_is_refused_and_not_dropped():
    with pytest.raises(SettingError, match="has no meaning here"):
        call("sd", fitted("sd"), num_inference_steps=3, eta=0.5)


def test_pain_11_callbacks_see_the_latents_and_the_prediction():
    seen = []

    def look(pipe, step, timestep, held):
        seen.append((step, held["latents"].clone(), pipe.scheduler.x0.clone(), pipe.scheduler.nfe))
        return {}

    end = call("flux", fitted("flux"), num_inference_steps=4, callback_on_step_end=look)
    assert [(step, nfe) for step, *_, nfe in seen] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert torch.equal(seen[-1][1], end)
    torch.testing.assert_close(seen[-1][2], end)
    assert not torch.equal(seen[0][1], seen[0][2])


def test_what_a_callback_puts_in_place_of_the_latents_counts():
    def erase(pipe, step, timestep, held):
        return {"latents": torch.zeros_like(held["latents"])} if step == 1 else {}

    pipe = fitted("sd")
    plain = call("sd", pipe, num_inference_steps=4)
    assert not torch.equal(
        call("sd", pipe, num_inference_steps=4, callback_on_step_end=erase), plain
    )


def test_an_interrupted_run_leaves_nothing_behind():
    def stop(pipe, step, timestep, held):
        pipe._interrupt = step == 1
        return {}

    pipe = fitted("sd", solver="unipc-3")
    whole = call("sd", pipe, num_inference_steps=4)
    part = call("sd", pipe, num_inference_steps=4, callback_on_step_end=stop)
    assert pipe.scheduler.nfe == 2
    assert not torch.equal(part, whole)
    assert torch.equal(call("sd", pipe, num_inference_steps=4), whole)


def test_pain_22_guidance_can_end_within_a_run():
    """A callback that halves the batch, as the pipelines document it."""

    def end(pipe, step, timestep, held):
        if step == 1:
            pipe._guidance_scale = 0.0
            held["prompt_embeds"] = held["prompt_embeds"].chunk(2)[-1]
        return held

    pipe = fitted("sd", solver="dpmpp-2m")
    asked = {"callback_on_step_end": end}
    asked["callback_on_step_end_tensor_inputs"] = ["latents", "prompt_embeds"]
    cut = call("sd", pipe, num_inference_steps=4, **asked)
    assert cut.isfinite().all()
    assert not torch.equal(cut, call("sd", pipe, num_inference_steps=4))


def test_pain_22_an_interval_of_guidance_costs_only_what_lies_in_it():
    pipe = fitted("sd", solver="dpmpp-2m")
    whole = call("sd", pipe, num_inference_steps=6, guidance_scale=3.0)
    ends = {}
    for name, low in (("all", 0.0), ("part", 0.5)):
        with guided(pipe, Interval(CFG(3.0), low, 100.0)) as ledger:
            ends[name] = call("sd", pipe, num_inference_steps=6), ledger.rows
    assert (ends["all"][1], ends["part"][1]) == (12, 6 + sum(pipe.scheduler.sigmas[:-1] > 0.5))
    torch.testing.assert_close(ends["all"][0], whole, rtol=1e-4, atol=1e-3)
    assert not torch.equal(ends["part"][0], ends["all"][0])


def test_pain_05_two_pipelines_with_one_network_in_two_threads():
    first = fitted("flux", solver="unipc-3")
    second = pipeline("flux", transformer=first.transformer)
    second.scheduler = SolverScheduler.from_config(second.scheduler.config, solver="dpmpp-2m")
    pipes_ = {"first": first, "second": second}
    alone = {key: call("flux", pipe, num_inference_steps=5) for key, pipe in pipes_.items()}
    found: dict[str, Tensor] = {}

    def work(key: str) -> None:
        found[key] = call("flux", pipes_[key], num_inference_steps=5)

    turns = threading.Barrier(2, timeout=10)  # so that the calls of both alternate
    first.transformer.register_forward_pre_hook(lambda *_: (turns.wait(), None)[1])
    threads = [threading.Thread(target=work, args=(key,)) for key in pipes_]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key in pipes_:
        torch.testing.assert_close(found[key], alone[key])


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_pain_26_networks_in_bfloat16(name):
    pipe = fitted(name, solver="unipc-2")
    full = call(name, pipe, num_inference_steps=4)
    pipe.to(torch.bfloat16)
    texts = {key: value.bfloat16() for key, value in PIPES[name].call.items() if "embeds" in key}
    low = call(name, pipe, num_inference_steps=4, **texts)
    assert pipe.scheduler.x0.dtype == torch.float32
    assert (low.float() - full).std() < 0.1 * full.std()


def test_strength_starts_at_the_noise_of_its_step():
    pipe = fitted("sd-img2img", solver="unipc-2", grid="uniform")
    call("sd-img2img", pipe, num_inference_steps=10, strength=0.3)
    assert (pipe.scheduler.begin_index, pipe.scheduler.nfe) == (7, 3)
    assert pipe.scheduler.timesteps[7] == pytest.approx(0.3 * 1000 - 1)


STARTED_LATE = ("wan-v2v", "ltx-condition", "animatediff-v2v", "kandinsky-img2img", "flux-img2img")


@pytest.mark.parametrize("name", STARTED_LATE)
def test_at_every_strength_the_image_is_that_of_the_scheduler_of_diffusers(name):
    """All but the last leave out timesteps without a word to the scheduler."""
    for strength in (1.0, 0.6, 0.3):
        asked = {"num_inference_steps": 10, strength_key(name): strength}
        pipe = pipeline(name, scheduler=reference(name))
        wanted = tensor(call(name, pipe, **asked))
        pipe.scheduler = ours_like(pipe.scheduler)
        found = tensor(call(name, pipe, **asked))
        assert pipe.scheduler.nfe == round(10 * strength)
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("solver", ["heun", "rf-solver", "ode-rk4"])
def test_flow_image_to_image_runs_from_every_strength(solver):
    """Flux takes evaluations for steps, and half of seven is the second call of a step."""
    pipe = fitted("flux-img2img", solver=solver)
    for strength in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        found = call("flux-img2img", pipe, num_inference_steps=4, strength=strength)
        assert found.isfinite().all()
        assert pipe.scheduler.nfe == math.ceil(len(pipe.scheduler.timesteps) * strength - 1e-9)
        if solver != "rf-solver":  # whose last question is a midpoint
            torch.testing.assert_close(found, pipe.scheduler.x0)


def test_stable_diffusion_image_to_image_runs_with_runge_kutta():
    pipe = fitted("sd-img2img", solver="ode-rk4")
    found = call("sd-img2img", pipe, num_inference_steps=10, strength=0.8)
    assert (pipe.scheduler.begin_index, pipe.scheduler.nfe) == (8, 29)
    assert found.isfinite().all()


def refine(base, half, scheduler, **given):
    """The latents of a base as a refiner with the same network, and a scheduler, finishes them."""
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**base.components)
    refiner.scheduler = scheduler
    refiner.set_progress_bar_config(disable=True)
    asked = PIPES["sdxl"].call | {"image": half, "denoising_start": 0.5} | given
    asked = {key: value for key, value in asked.items() if key not in ("height", "width")}
    with warnings.catch_warnings(action="ignore"):  # latents are no picture from 0 to 1
        return refiner(**asked, return_dict=False)[0]


def share_network():
    """A base of Stable Diffusion XL whose network a refiner can have too."""
    net = tiny.network("unet-condition", **PIPES["sdxl"].config, in_channels=4, out_channels=4)
    return pipeline("sdxl", unet=net, **vae(4))


@pytest.mark.parametrize("solver", ["unipc-3", "heun", "dpmpp-2s", "rf-solver", "ddpm"])
def test_a_base_and_a_refiner_are_the_whole_run_to_the_bit(solver):
    """If the solver goes on with what it remembers, even within a step; or if it remembers nothing
    and the run is cut between two steps."""
    base, noise = share_network(), torch.Generator()
    chosen = {"solver": solver, "grid": "uniform", "state": "vp"}
    config = SolverScheduler.from_config(base.scheduler.config, **chosen).config
    base.scheduler = SolverScheduler.from_config(config)
    given = {"num_inference_steps": 10, "generator": noise}
    whole = call("sdxl", base, **given, latents=None)
    noise.manual_seed(noise.initial_seed())
    half = call("sdxl", base, **given, latents=None, denoising_end=0.5)
    further = SolverScheduler.from_config(config)
    further.continue_from(base.scheduler)
    assert torch.equal(refine(base, half, further, **given), whole)
    if solver in ("unipc-3", "dpmpp-2s"):  # what they remember is lost
        return
    noise.manual_seed(noise.initial_seed())
    base.scheduler = SolverScheduler.from_config(config, denoising_end=0.5)
    half = call("sdxl", base, **given, latents=None)
    rest = SolverScheduler.from_config(config, denoising_start=0.5)
    assert torch.equal(refine(base, half, rest, **given), whole)
    assert base.scheduler.num_inference_steps == rest.num_inference_steps == 5
    assert base.scheduler.nfe + rest.nfe == (10 if solver == "ddpm" else 19 + (solver != "heun"))


def test_what_a_scheduler_cannot_continue_is_refused():
    base = share_network()
    chosen = {"solver": "unipc-2", "grid": "uniform"}
    base.scheduler = SolverScheduler.from_config(base.scheduler.config, **chosen)
    half = call("sdxl", base, num_inference_steps=10, denoising_end=0.4)
    further = SolverScheduler.from_config(base.scheduler.config)
    further.continue_from(base.scheduler)
    with pytest.raises(
        SettingError, match=r"has made 4 evaluations .*, and this one begins after 5"
    ):
        refine(base, half, further, num_inference_steps=10)
    with pytest.raises(SettingError, match="has other steps or another solver"):
        refine(base, half, further, num_inference_steps=8)
    with pytest.raises(SettingError, match="takes another SolverScheduler"):
        further.continue_from(further)
    for given, message in (
        ({"denoising_end": 1.0}, "denoising_end=1.0 must be a fraction of the run"),
        ({"denoising_start": 0.6, "denoising_end": 0.5}, "no step of this run begins between"),
    ):
        scheduler = SolverScheduler.from_config(base.scheduler.config, **given)
        with pytest.raises(SettingError, match=message):
            scheduler.set_timesteps(10)


REFINED = {"ddim": 1e-6, "unipc-2": 1e-3, "heun": 1e-3, "rf-solver": 1e-6, "ode-rk4": 1e-3}


@pytest.mark.parametrize("solver", REFINED)
def test_a_refiner_goes_on_where_its_base_ended(solver):
    """Two halves make the whole run. Lost between them is a multistep solver's memory, and what is
    left of a step that the base has begun: it hands over the first guess at the next node."""
    base, labels = share_network(), []
    chosen = {"solver": solver, "grid": "uniform"}
    base.scheduler = SolverScheduler.from_config(base.scheduler.config, **chosen)
    whole = call("sdxl", base, num_inference_steps=10)
    half = call("sdxl", base, num_inference_steps=10, denoising_end=0.5)
    base.unet.register_forward_pre_hook(lambda module, args: labels.append(float(args[1])))
    found = refine(base, half, base.scheduler, num_inference_steps=10)
    assert labels[0] == pytest.approx(499.0)
    assert (found - whole).abs().max() < REFINED[solver] * whole.abs().max()


def test_tokens_with_times_of_their_own_are_refused_by_name():
    pipe = fitted("ltx-condition", solver="euler")
    image = torch.rand(1, 3, 128, 128)
    with pytest.raises(SettingError, match="per_token_timesteps gives some tokens the time 0 in a"):
        call("ltx-condition", pipe, num_inference_steps=4, image=image)


def test_inpainting_keeps_what_the_mask_keeps():
    """The pipeline puts the known part back between steps; at the end it is the image's latent."""
    pipe = fitted("sd-inpaint", solver="unipc-3")
    seen = []

    def look(pipe, step, timestep, held):
        seen.append({key: value.clone() for key, value in held.items()})
        return {}

    own = {"callback_on_step_end": look}
    own["callback_on_step_end_tensor_inputs"] = ["latents", "mask"]
    call("sd-inpaint", pipe, num_inference_steps=4, guidance_scale=1.0, **own)
    keep = seen[-1]["mask"].expand_as(seen[-1]["latents"]) < 0.5
    ends = [each["latents"][keep] for each in seen]
    assert keep.any()
    assert (ends[-1] - ends[-2]).abs().max() < 3.0  # an image with the noise of the last node


def test_offloading_changes_nothing():
    plain = call("flux", fitted("flux"), num_inference_steps=3)
    pipe = fitted("flux")
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(call("flux", pipe, num_inference_steps=3), plain)


LOADING = """
import diffusers
pipe = diffusers.DiffusionPipeline.from_pretrained({folder!r}, **{how})
pipe.scheduler.set_timesteps(4)
assert pipe.scheduler.timesteps.tolist() == {labels}, pipe.scheduler.timesteps
assert pipe.scheduler.config.solver == "unipc-3"
pipe.set_progress_bar_config(disable=True)
assert pipe(num_inference_steps=4).images
"""
REFUSAL = """
import diffusers
try:
    diffusers.DiffusionPipeline.from_pretrained({folder!r})
except ValueError as error:
    assert "import fewstep before calling `from_pretrained`" in str(error), error
else:
    raise AssertionError("diffusers imports what a folder names")
"""


def run_anew(*parts: str) -> None:
    """Runs code in a process that has imported nothing."""
    code = "\n".join(parts)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.fixture
def saved(tmp_path):
    """The folder of a saved pipeline, with the labels of its four steps."""
    pipe = fitted("ddpm", solver="unipc-3", grid="karras")
    pipe.save_pretrained(tmp_path)
    pipe.scheduler.set_timesteps(4)
    return {"folder": str(tmp_path), "labels": pipe.scheduler.timesteps.tolist(), "how": {}}


def test_a_saved_pipeline_loads_in_a_new_process_that_imports_us(saved, tmp_path):
    run_anew(REFUSAL.format(**saved), "import fewstep", LOADING.format(**saved))
    index = tmp_path / "model_index.json"
    assert '"fewstep",\n    "SolverScheduler"' in index.read_text()


@pytest.mark.slow
def test_a_pipeline_saved_by_version_01_loads_where_its_module_is_imported(saved, tmp_path):
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"fewstep"', '"fewstep.samplers.scheduler"'))
    run_anew("import fewstep.samplers.scheduler", LOADING.format(**saved))


def test_pain_24_a_pipeline_that_replaces_its_scheduler_can_be_given_it_afterwards():
    net = tiny.network("unet", num_class_embeds=None)
    pipe = diffusers.DDIMPipeline(
        net, SolverScheduler.from_config(diffusers.DDIMScheduler().config)
    )
    assert type(pipe.scheduler) is diffusers.DDIMScheduler  # what the complaint is about
    pipe.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 4, "output_type": "np", "return_dict": False}
    plain = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    pipe.scheduler = plain
    wanted = pipe(**asked, generator=torch.Generator().manual_seed(0))[0]
    made = SolverScheduler.from_config(plain.config, solver="ddim", grid=times_of(plain))
    pipe.scheduler = made
    found = pipe(**asked, generator=torch.Generator().manual_seed(0))[0]
    assert np.abs(found - wanted).max() < 1e-4


def test_a_schedule_runs_in_a_pipeline_and_says_its_number_of_steps():
    pipe = fitted("sd", schedule="ays-sd15-nfe10")
    assert call("sd", pipe, num_inference_steps=10).isfinite().all()
    with pytest.raises(SettingError, match="num_inference_steps=10"):
        call("sd", pipe, num_inference_steps=50)
