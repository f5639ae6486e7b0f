"""Editing and inversion around pipelines: pictures and prompts in, pictures out, offloaded too."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import accelerate
import diffusers
import pytest
import tiny_pipes
import torch
from PIL import Image
from tiny_texts import prompted
from typer.testing import CliRunner

from fewstep import CFG, Editor, Sampler, invert, reconstruct
from fewstep.cli import app
from fewstep.models.adapters import decoder_of, encoder_of
from fewstep.models.architectures.base import Size
from fewstep.models.architectures.qwen import decode_image, encode_image
from fewstep.models.errors import ModelError, SettingError
from fewstep.models.pipeline_network import default_size, encoded, fit_shape, network_of
from fewstep.samplers.images import place_images, to_pil, to_tensor
from fewstep.samplers.inversion import Inversion

CAT, DOG = "a photo of a cat", "a photo of a very small green dog"
TEXT = "encoder_hidden_states"
PICTURE = Image.linear_gradient("L").resize((32, 16)).convert("RGB")


@pytest.fixture(scope="module")
def pipes():
    return {name: prompted(name) for name in ("flux", "sd3", "sd")}


@pytest.fixture(scope="module")
def samplers(pipes):
    return {name: Sampler.from_pipeline(pipe) for name, pipe in pipes.items()}


def edited(sampler, spec="rf-edit:steps=3", image=PICTURE, source=CAT, target=DOG, **more):
    return Editor(sampler, spec)(image, source=source, target=target, **more)


@contextmanager
def heard(sampler):
    """Yields what the network is called with, call by call."""
    calls = []

    def hear(module, args, kwargs):
        calls.append(kwargs)

    handle = sampler.network.module.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def mode_of(vae, picture, latents):
    """The latents of a picture, written down by hand."""
    pixels = to_tensor(SimpleNamespace(encode=1, decode=1, shape=(latents, 1, 1)), picture)
    with torch.no_grad():
        mode = vae.encode(pixels).latent_dist.mode()
    return (mode - 0.1) * vae.config.scaling_factor


@pytest.mark.parametrize(("name", "latents"), [("flux", 1), ("sd3", 2), ("sd", 2)])
def test_pictures_become_the_mode_of_the_posterior(name, latents, pipes, samplers):
    network, x = place_images(samplers[name].network, PICTURE)
    wanted = mode_of(pipes[name].vae, PICTURE, latents)
    assert network.shape == wanted.shape[1:] == (latents, 8, 16)
    torch.testing.assert_close(x, wanted)
    pixels = to_tensor(network, PICTURE)
    assert torch.equal(place_images(samplers[name].network, pixels)[1], x)  # a tensor in [-1, 1]
    torch.testing.assert_close(
        place_images(samplers[name].network, [PICTURE, PICTURE])[1], torch.cat([x, x])
    )
    assert place_images(samplers[name].network, x)[1] is x  # latents are states already


def test_encoding_undoes_the_scaling_of_decoding(pipes):
    vae = pipes["sd3"].vae
    latents = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    posterior = SimpleNamespace(mode=lambda: vae_input[0])
    vae_input = []
    stand = SimpleNamespace(
        config=vae.config,
        decode=lambda x, return_dict: (vae_input.append(x), (x,))[1],
        encode=lambda x, return_dict: (posterior,),
    )
    decoder_of(stand)(latents)
    torch.testing.assert_close(encoder_of(stand)(torch.zeros(1, 3, 16, 16)), latents)


def test_a_vae_without_a_posterior_gives_its_latents():
    stand = SimpleNamespace(config={"scaling_factor": 0.5}, encode=lambda x, return_dict: (2 * x,))
    assert torch.equal(encoder_of(stand)(torch.ones(1, 3, 2, 2)), torch.ones(1, 3, 2, 2))


def test_channelwise_scaling_is_undone():
    class Stand(torch.nn.Module):
        config = {"latents_mean": [1.0, -2.0], "latents_std": [3.0, 0.5]}  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def decode(self, x, return_dict):
            return (x,)

        def encode(self, x, return_dict):
            return (SimpleNamespace(mode=lambda: x),)

    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encode_image(Stand(), decode_image(Stand(), x)), x)
    assert not torch.allclose(decode_image(Stand(), x), x)


def test_the_picture_decides_the_size_and_with_it_the_times(pipes, samplers):
    """Flux shifts its times by the number of tokens."""
    own = samplers["flux"].network
    network, _ = place_images(own, PICTURE)
    assert network.schedule == network_of(pipes["flux"], Size(16, 32)).schedule != own.schedule
    assert own.shape == (1, 128, 128)  # the pipeline's own size
    assert default_size(pipes["sd3"]) == Size(16, 16)
    assert fit_shape(own, own.shape) is own
    assert edited(samplers["flux"], image=PICTURE.resize((16, 24))).images[0].size == (16, 24)


def test_five_lines_edit_a_picture(pipes):
    """As a user of diffusers types them."""
    for name in ("flux", "sd3", "sd"):
        editor = Editor(Sampler.from_pipeline(pipes[name]), "rf-edit:steps=2,inject=2")
        edit = editor(PICTURE, source=CAT, target=DOG)
        assert edit.images[0].size == PICTURE.size
        assert edit.samples.isfinite().all()
        assert edit.bytes_held == edit.bytes_predicted > 0
        assert not edit.samples.requires_grad


def test_the_example_of_the_page_runs(monkeypatch, tmp_path, pipes):
    page = (Path(__file__).parents[1] / "docs" / "editing.md").read_text()
    (code,) = [part for part in page.split("```") if "FluxPipeline.from_pretrained" in part]
    monkeypatch.setattr(pipes["flux"], "enable_model_cpu_offload", lambda: None)  # needs a GPU
    monkeypatch.setattr(
        diffusers.FluxPipeline, "from_pretrained", lambda hub, torch_dtype: pipes["flux"]
    )
    monkeypatch.chdir(tmp_path)
    PICTURE.save("cat.png")
    quick = code.removeprefix("python").replace(":inject=4", ":steps=4,inject=4")
    exec(compile(quick, "page", "exec"), {})
    with Image.open("dog.png") as found:
        assert found.size == PICTURE.size


def test_sd3_without_injection_is_inversion_and_guided_sampling(samplers):
    """The negative prompt that diffusers takes where none is given is the empty one."""
    sampler = samplers["sd3"]
    there = invert(sampler, PICTURE, prompt=CAT, steps=3)
    back = reconstruct(sampler, there, prompt=DOG, negative="", guidance=CFG(2.0))
    found = edited(sampler, "rf-edit:steps=3,inject=0")
    assert torch.equal(found.samples, back.samples)
    other = edited(sampler, "rf-edit:steps=3,inject=0", negative=CAT).samples
    assert not torch.equal(other, back.samples)
    assert found.ledger.rows == 6 + 12


def test_flux_is_told_its_guidance(samplers):
    """1 on the way to the noise, the editor's scale on the way back, and no second branch."""
    with heard(samplers["flux"]) as calls:
        found = edited(samplers["flux"], "rf-edit:steps=3,inject=1,guidance=2.5")
    assert [float(call["guidance"]) for call in calls] == [1.0] * 6 + [2.5] * 6
    assert found.ledger.rows == found.ledger.nfe == 12
    with heard(samplers["flux"]) as calls:
        edited(samplers["flux"], "flow-edit:steps=3,n_max=1,source_guidance=1.5,guidance=5.5")
    assert [float(call["guidance"]) for call in calls] == [5.5, 1.5]


def test_flux_with_a_negative_is_guided_by_two_branches(samplers):
    with heard(samplers["flux"]) as calls:
        edited(samplers["flux"], "rf-edit:steps=2,inject=1,guidance=2.5", negative="a cat")
    assert [call["guidance"].tolist() for call in calls] == [[1.0]] * 4 + [[1.0, 1.0]] * 4
    texts = calls[-1][TEXT]
    assert not torch.equal(texts[0], texts[1])


@pytest.mark.parametrize("name", ["flux", "sd3", "sd"])
def test_prompts_of_any_length_are_padded_to_one(name, samplers):
    """So V, which holds the text in Flux, always fits; prompts are those of the pipeline."""
    network = samplers[name].network
    short, _ = network.prompts.conditions("cat")
    long, negative = network.prompts.conditions(DOG, CAT)
    assert short[TEXT].shape == long[TEXT].shape == negative[TEXT].shape
    assert not torch.equal(short[TEXT], long[TEXT])
    wanted, _ = encoded(network.prompts.pipe, network.prompts.size, prompt=DOG)
    assert torch.equal(long[TEXT], wanted[TEXT])


def test_embeddings_of_two_lengths_are_refused_before_anything_runs(pipes, samplers):
    def texts(name, length):
        made, _ = encoded(pipes[name], Size(16, 32), prompt=CAT, max_sequence_length=length)
        return made

    with (
        heard(samplers["flux"]) as calls,
        pytest.raises(SettingError, match="20 and 24 tokens long: pad"),
    ):
        edited(samplers["flux"], source=texts("flux", 20), target=texts("flux", 24))
    assert not calls
    spec = "rf-edit:steps=3,guidance=1"  # in SD3 the tapped V is that of the image alone
    found = edited(samplers["sd3"], spec, source=texts("sd3", 20), target=texts("sd3", 24))
    assert found.samples.isfinite().all()


def test_texts_as_long_as_they_are_get_padded_and_masked():
    """QwenImage's pipeline pads no prompt, so two branches would not fit into one batch."""
    pipe = tiny_pipes.pipeline("qwen")
    short, long = tiny_pipes.text(1, 3, 12), tiny_pipes.text(1, 5, 12, seed=1)
    pipe.encode_prompt = lambda prompt, device: (long if prompt == DOG else short, None)
    conditions, negative = encoded(pipe, Size(64, 64), prompt=CAT, negative_prompt=DOG)
    assert conditions.keys() == negative.keys()
    assert conditions["encoder_hidden_states_mask"].tolist() == [[1, 1, 1, 0, 0]]
    network = network_of(pipe, Size(64, 64))
    x = torch.ones(1, *network.shape)
    padded, plain = (
        network.forward(x, network.schedule.at(0.5), each) for each in (conditions, {TEXT: short})
    )
    torch.testing.assert_close(padded, plain, atol=1e-5, rtol=1e-5)


def test_one_prompt_serves_all_pictures_or_each_has_its_own(samplers):
    other = PICTURE.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    both = edited(samplers["sd3"], image=[PICTURE, other], source=CAT, target=[DOG, CAT])
    for row, (image, target) in enumerate([(PICTURE, DOG), (other, CAT)]):
        one = edited(samplers["sd3"], image=image, target=target)
        torch.testing.assert_close(both.samples[row : row + 1], one.samples, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", ["uni-edit:steps=5", "rf-inversion:steps=3", "flow-edit:n_max=2"])
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_the_other_editors_take_prompts_too(name, spec, samplers):
    found = edited(samplers[name], spec).samples
    assert found.shape == (1, 3, 16, 32)
    assert not torch.equal(found, edited(samplers[name], spec, target="cat").samples)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_pictures_come_back(name, samplers, tmp_path):
    """Also from a file; what is lost after that is the VAE's."""
    sampler, path = samplers[name], tmp_path / "noise.safetensors"
    found = invert(sampler, PICTURE, prompt=CAT, solver="ode-rk4", steps=6)
    found.save(path)
    network, x = place_images(sampler.network, PICTURE)
    with torch.no_grad():
        wanted = network.decode(x)
    for each in (found, Inversion.load(path, network.schedule)):
        assert each.prompt == CAT
        back = reconstruct(sampler, each).samples
        assert not back.requires_grad
        torch.testing.assert_close(back, wanted, atol=0.2, rtol=0)
    assert not torch.allclose(reconstruct(sampler, found, prompt=DOG).samples, wanted, atol=0.2)


def whole_models(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def every_weight(pipe):
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            accelerate.cpu_offload(module, torch.device("cpu"), offload_buffers=True)
    assert pipe.transformer.device.type == "meta"


@pytest.mark.parametrize(("name", "offload"), [("flux", whole_models), ("sd3", every_weight)])
def test_offloading_changes_nothing(name, offload, samplers):
    """Whole models, and weights one by one: then they are on no device until they are used."""
    pipe, spec = prompted(name), "rf-edit:steps=2"
    offload(pipe)
    sampler = Sampler.from_pipeline(pipe)
    assert sampler.network.device.type == "cpu"
    plain = edited(samplers[name], spec).samples
    for _ in range(2):
        assert torch.equal(edited(sampler, spec).samples, plain)
    assert all(hasattr(part, "_hf_hook") for part in (pipe.transformer, pipe.vae))
    there = invert(sampler, PICTURE, prompt=CAT, steps=2)
    assert reconstruct(sampler, there).samples.isfinite().all()


def test_an_offloaded_network_is_where_it_runs():
    """Not where its weights wait; there would be no kernels for it."""
    pipe = prompted("sd3")
    for module in filter(lambda part: isinstance(part, torch.nn.Module), pipe.components.values()):
        hook = accelerate.hooks.AlignDevicesHook(execution_device="meta", offload=False)
        hook.init_hook = lambda module: module  # the weights stay where they are
        accelerate.hooks.add_hook_to_module(module, hook)
    assert pipe.transformer.device == torch.device("cpu")
    assert network_of(pipe, Size(16, 16)).device == torch.device("meta")


def test_a_network_of_classes_with_a_vae_takes_pictures_too():
    sampler = Sampler.from_pipeline(tiny_pipes.pipeline("dit"))
    square = PICTURE.resize((16, 16))
    found = edited(sampler, "rf-edit:solver=ddim,steps=3", square, 3, 6)
    assert found.images[0].size == (16, 16)
    with pytest.raises(SettingError, match="16x16 pixels, not of 32x16"):
        edited(sampler, image=PICTURE, source=3, target=6)
    with pytest.raises(SettingError, match="takes no prompt; give a class from 0 to 999"):
        edited(sampler, image=square)


def test_what_does_not_fit_is_refused(pipes, samplers):
    flux = samplers["flux"]
    pixels = to_tensor(flux.network, PICTURE)
    pairs = {
        "multiples of 4 pixels, not 32x18; crop or resize the picture to 32x16": {
            "image": PICTURE.resize((32, 18))
        },
        "mode L": {"image": PICTURE.convert("L")},
        "mode RGBA": {"image": PICTURE.convert("RGBA")},
        "one size": {"image": [PICTURE, PICTURE.resize((16, 16))]},
        "give a PIL image": {"image": "cat.png"},
        r"floats in \[-1, 1\]": {"image": pixels * 127.5},
        "without NaN": {"image": pixels * torch.nan},
        "takes prompts and no classes": {"source": 3},
        "2 prompts for 1 images": {"target": [CAT, DOG]},
        "give a prompt there too": {"negative": {TEXT: torch.zeros(1)}},
    }
    for match, wrong in pairs.items():
        with pytest.raises(SettingError, match=match):
            edited(flux, **wrong)
    with pytest.raises(SettingError, match="takes prompts and no classes"):
        invert(flux, PICTURE, class_labels=3)
    with pytest.raises(SettingError, match="a prompt stands alone"):
        invert(flux, PICTURE, prompt=CAT, class_labels=3)
    with pytest.raises(SettingError, match="negative is a prompt beside tensors"):
        edited(flux, source={}, target={}, negative="cat")
    with pytest.raises(ModelError, match=r"does not say what size.*Size"):
        Sampler.from_pipeline(tiny_pipes.pipeline("wan"))


@pytest.fixture(scope="module")
def saved(pipes, tmp_path_factory):
    """A pipeline's folder, a picture, and a grey one of the embedded networks' size."""
    folder = tmp_path_factory.mktemp("saved")
    pipes["flux"].save_pretrained(folder / "flux")
    PICTURE.save(folder / "picture.png")
    Image.linear_gradient("L").resize((32, 32)).save(folder / "grey.png")
    return folder


def typed(folder, command, *args):
    return CliRunner().invoke(app, [command, *args], env={"COLUMNS": "200"})


def test_commands_take_prompts(saved, tmp_path, samplers):
    model, picture = str(saved / "flux"), str(saved / "picture.png")
    told = ["--from-prompt", CAT, "--to-prompt", DOG, "--editor", "rf-edit:steps=3"]
    out = ["--out", str(tmp_path / "e.png"), "--strip", str(tmp_path / "s.png")]
    done = typed(saved, "edit", picture, "--model", model, *told, *out)
    assert done.exit_code == 0, done.output
    assert "NFE 12" in done.output
    assert "warning" not in done.output
    wanted = to_pil(edited(samplers["flux"]).samples)[0]
    with Image.open(tmp_path / "e.png") as found, Image.open(tmp_path / "s.png") as strip:
        assert found.tobytes() == wanted.tobytes()
        assert strip.width > 3 * 32
    out = ["--out", str(tmp_path / "n.safetensors"), "--steps", "2"]
    done = typed(saved, "invert", picture, "--model", model, "--prompt", CAT, *out)
    assert done.exit_code == 0, done.output
    network = place_images(samplers["flux"].network, PICTURE)[0]
    assert Inversion.load(tmp_path / "n.safetensors", network.schedule).prompt == CAT


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ("edit grey.png --to-prompt dog", "fashion-dit takes no prompt; give a class from 0 to 9"),
        ("edit grey.png --to-class 1 --negative-prompt dog", "no negative one"),
        ("edit grey.png", "--to-class or --to-prompt"),
        ("edit grey.png --to-class 1 --to-prompt dog", "not both"),
        ("edit grey.png --to-class 1 --from-class 1 --from-prompt dog", "--from-class or"),
        ("invert grey.png --class 1 --prompt dog", "--class or --prompt, not both"),
        ("invert grey.png --prompt dog", "takes no prompt"),
        ("edit picture.png --model flux --to-class 3", "takes prompts and no classes"),
        ("invert picture.png --model flux --class 3", "takes prompts and no classes"),
        ("edit grey.png --model flux --to-prompt dog", "convert it to mode RGB"),
    ],
)
def test_commands_refuse_in_one_line(args, match, saved, monkeypatch):
    monkeypatch.chdir(saved)
    before = sorted(path.name for path in saved.iterdir())
    done = typed(saved, *args.split())
    assert done.exit_code == 2
    assert match in done.output
    assert done.output.count("\n") == 1
    assert sorted(path.name for path in saved.iterdir()) == before
