"""Where a network comes from: embedded, a folder, the hub's cache, or a live pipeline."""

import copy
import hashlib
import json
import pickle
import shutil
import socket
from pathlib import Path

import diffusers
import huggingface_hub.constants
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from safetensors import safe_open

from fewstep import Sampler
from fewstep.models import embedded
from fewstep.models.adapters import from_pipeline
from fewstep.models.checkpoint import WEIGHTS
from fewstep.models.denoiser import Branch, Denoiser
from fewstep.models.errors import FewstepError, ModelError, UnknownNameError
from fewstep.models.load import embedded_names, load, read_card
from fewstep.models.prediction import Prediction
from fewstep.models.schedule import RectifiedFlow, VPDiscrete, process_of

HOME = Path(embedded.__file__).parent
every_embedded = pytest.mark.parametrize("name", embedded_names())


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test reaches the network; a try is an error of the test."""

    def refuse(*_):
        raise AssertionError("a test tried to connect")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def networks():
    return {name: load(name) for name in embedded_names()}


def tiny_unet(**settings):
    torch.manual_seed(0)
    defaults = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (4,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "add_attention": False,
    }
    return UNet2DModel(**{**defaults, **settings}).eval()


def tiny_dit():
    """Class-conditional, with learned sigma, on the latents of a VAE with factor 2."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        sample_size=8, patch_size=2, num_embeds_ada_norm=3, norm_num_groups=1,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=2,
        scaling_factor=0.5, shift_factor=0.25,
    )  # fmt: skip
    return DiTPipeline(transformer.eval(), vae.eval(), DDIMScheduler(), id2label={0: "a", 1: "b"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint folder and two pipeline folders, as diffusers writes them."""
    root = tmp_path_factory.mktemp("saved")
    tiny_unet().save_pretrained(root / "checkpoint")
    DDPMScheduler(prediction_type="sample").save_pretrained(root / "checkpoint")
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    DDPMPipeline(tiny_unet(), scheduler).save_pretrained(root / "ddpm")
    tiny_dit().save_pretrained(root / "dit")
    return root


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy of the checkpoint folder, to be damaged."""
    return Path(shutil.copytree(saved / "checkpoint", tmp_path / "checkpoint"))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.no_grad()
def answer(network, t=0.25, **conditions):
    """(x_t, raw output) of three rows."""
    x_t = torch.randn(3, *network.shape, generator=torch.Generator().manual_seed(1))
    return x_t, network.forward(x_t, network.schedule.at(t), conditions)


# The embedded networks


def test_what_is_embedded():
    assert embedded_names() == ["emoji", "fashion-dit", "fashion-edm", "fashion-unet"]
    assert sum(path.stat().st_size for path in HOME.rglob("*.safetensors")) < 13_000_000


@every_embedded
def test_the_card_tells_the_truth(name):
    facts, folder = read_card(name), HOME / name
    assert facts["name"] == name
    assert facts["sha256"] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    module = getattr(diffusers, facts["class"]).from_pretrained(folder)
    assert type(module).__name__ == facts["class"]
    assert facts["parameters"] == sum(p.numel() for p in module.parameters())
    assert len(facts["class_names"]) == facts["num_classes"] == facts["null_class"]
    for text in ("training", "data", "data_licence", "licence"):
        assert facts[text]
    with safe_open(folder / WEIGHTS, "pt") as weights:
        assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F16"}  # noqa: SIM118


@every_embedded
def test_an_embedded_network_is_what_its_card_says(name, networks):
    network, facts = networks[name], read_card(name)
    assert network.name == name
    assert network.shape == tuple(facts["shape"]) == (facts["shape"][0], 32, 32)
    assert (network.num_classes, network.null_class) == (facts["num_classes"],) * 2
    assert network.cfg_scale == (2.0 if name == "emoji" else 1.0)
    shown = [network.class_names[label] for label in network.shown_classes]
    assert shown == (["smileys", "flags", "people"] if name == "emoji" else [])
    assert network.prediction == facts["prediction"]
    assert process_of(network.schedule)["params"].items() >= facts["schedule"]["params"].items()
    assert network.decode is None
    assert network.device == torch.device("cpu")


@every_embedded
@pytest.mark.parametrize("null", [False, True])
def test_an_embedded_network_knows_its_data(name, null, networks):
    """The edges of pictures are black, of emoji white; only the right prediction finds them."""
    network, background = networks[name], 1.0 if name == "emoji" else -1.0
    labels = torch.full((3,), network.null_class if null else 0)
    node = network.schedule.at(0.5)
    eps = torch.randn(3, *network.shape, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(network, {Branch.COND: {"class_labels": labels}})
    with torch.no_grad():
        (x0,) = denoiser.x0(node.sigma * eps + background * node.alpha, node)
    edge = torch.ones(32, 32, dtype=torch.bool)
    edge[2:-2, 2:-2] = False
    assert (x0[..., edge] - background).square().mean().sqrt() < 0.1


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_another_dtype_changes_the_weights_and_not_the_state(dtype, networks):
    labels = torch.tensor([0, 5, 10])
    x_t, out = answer(load("fashion-dit", dtype=dtype), class_labels=labels)
    _, exact = answer(networks["fashion-dit"], class_labels=labels)
    assert out.dtype == x_t.dtype == torch.float32
    assert not torch.equal(out, exact)
    torch.testing.assert_close(out, exact, rtol=0, atol=0.1)


def test_a_network_is_returned_as_it_is(networks):
    assert load(networks["fashion-dit"]) is networks["fashion-dit"]


# Folders and pipelines of diffusers


@pytest.mark.parametrize("inside", [".", "scheduler"])
def test_a_checkpoint_folder_with_its_scheduler(checkpoint, inside):
    (checkpoint / inside).mkdir(exist_ok=True)
    (checkpoint / "scheduler_config.json").rename(checkpoint / inside / "scheduler_config.json")
    network = load(checkpoint)
    assert (network.schedule, network.prediction) == (VPDiscrete(), Prediction.X0)
    assert (network.shape, network.name) == ((1, 8, 8), str(checkpoint))
    x_t, out = answer(network)
    with torch.no_grad():
        assert torch.equal(out, tiny_unet()(x_t, 249).sample)


def test_a_checkpoint_folder_with_a_card(checkpoint):
    (checkpoint / "scheduler_config.json").unlink()
    write_card(checkpoint)
    network = load(str(checkpoint))
    assert (network.schedule, network.prediction) == (
        RectifiedFlow(3.0, time_scale=1000),
        Prediction.FLOW,
    )
    assert (network.num_classes, network.null_class) == (7, 7)


def write_card(folder, **changes):
    facts = {
        "name": "mine",
        "schedule": {"family": "flow", "params": {"shift": 3.0, "time_scale": 1000}},
        "prediction": "flow",
        "shape": [1, 8, 8],
        "num_classes": 7,
        "null_class": 7,
        "sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
    }
    (folder / "card.json").write_text(json.dumps({**facts, **changes}))


def test_class_labels_of_a_checkpoint(tmp_path):
    tiny_unet(num_class_embeds=5).save_pretrained(tmp_path)
    DDPMScheduler().save_pretrained(tmp_path)
    network = load(tmp_path)
    assert (network.num_classes, network.null_class) == (5, None)
    _, zero = answer(network, class_labels=torch.tensor([0, 0, 0]))
    _, mixed = answer(network, class_labels=torch.tensor([0, 4, 0]))
    assert [torch.equal(a, b) for a, b in zip(zero, mixed, strict=True)] == [True, False, True]


def pipelines(saved, kind):
    live = DDPMPipeline.from_pretrained if kind == "ddpm" else DiTPipeline.from_pretrained
    return load(saved / kind), load(live(saved / kind))


def test_a_ddpm_pipeline_from_a_folder_and_live(saved):
    folder, live = pipelines(saved, "ddpm")
    for network in (folder, live):
        assert network.schedule == VPDiscrete("squaredcos_cap_v2")
        assert (network.prediction, network.shape) == (Prediction.V, (1, 8, 8))
        assert (network.decode, network.num_classes) == (None, 0)
        x_t, out = answer(network)
        with torch.no_grad():
            assert torch.equal(out, tiny_unet()(x_t, 249).sample)
    assert folder.name == str(saved / "ddpm")


def test_a_latent_pipeline_from_a_folder_and_live(saved):
    pipe, labels = tiny_dit(), torch.tensor([0, 1, 3])
    for network in (*pipelines(saved, "dit"), from_pipeline(pipe)):
        assert (network.shape, network.prediction) == ((4, 8, 8), Prediction.EPS)
        assert (network.num_classes, network.null_class) == (3, 3)
        x_t, out = answer(network, class_labels=labels)
        with torch.no_grad():
            time = torch.full((3,), 249.0)
            both = pipe.transformer(x_t, timestep=time, class_labels=labels).sample
            images, expected = network.decode(x_t), pipe.vae.decode(x_t / 0.5 + 0.25).sample
        assert torch.equal(out, both[:, :4])
        assert torch.equal(images, expected)
        assert images.shape == (3, 3, 16, 16)


def test_a_live_pipeline_keeps_its_dtype_unless_another_is_asked_for():
    pipe = tiny_dit()
    for asked, dtype in ((None, torch.float32), ("bf16", torch.bfloat16), (None, torch.bfloat16)):
        network = load(pipe, dtype=asked)
        assert pipe.vae.dtype == pipe.transformer.dtype == dtype
        x_t, out = answer(network, class_labels=torch.tensor([0, 1, 2]))
        assert out.dtype == network.decode(x_t).dtype == torch.float32


def test_a_live_pipeline_with_a_scheduler_made_in_code():
    network = load(DDPMPipeline(tiny_unet(), FlowMatchEulerDiscreteScheduler(shift=3.0)))
    assert network.schedule == RectifiedFlow(3.0, time_scale=1000)


def test_a_shift_by_size_takes_the_size_of_the_pipeline(tmp_path):
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=64, max_image_seq_len=65
    )
    DDPMPipeline(tiny_unet(), scheduler).save_pretrained(tmp_path)
    assert load(tmp_path).schedule.shift == pytest.approx(2.718281828**0.5)


def test_a_checkpoint_is_read_like_a_pipeline(tmp_path):
    tiny_unet(sample_size=(8, 16)).save_pretrained(tmp_path)
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(tmp_path)
    network = load(tmp_path)
    assert network.shape == (1, 8, 16)
    assert network.schedule.shift > 1.0


# The hub's cache


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    """A cache that holds me/tiny: the pipeline as main, the checkpoint as revision v1."""
    repo = tmp_path / "models--me--tiny"
    for revision, commit, kind in (("main", "a" * 40, "ddpm"), ("v1", "b" * 40, "checkpoint")):
        shutil.copytree(saved / kind, repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("hub")
def test_a_hub_id_is_found_in_the_cache():
    network = load("me/tiny")
    assert (network.name, network.prediction) == ("me/tiny", Prediction.V)


@pytest.mark.usefixtures("hub")
def test_a_hub_id_with_a_revision():
    assert load("me/tiny@v1").prediction is Prediction.X0


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("source", ["me/absent", "me/tiny@v9", "bad--/name"])
def test_an_unknown_hub_id_says_what_the_hub_says(source):
    with pytest.raises(ModelError, match=f"'{source}'.*known: emoji.*the hub says"):
        load(source)


# Refusals


@pytest.mark.parametrize("source", ["fashion-dti", "a/b/c", "./here", "/nowhere/at/all", "~/x"])
def test_a_name_that_leads_nowhere(source):
    with pytest.raises(ModelError, match=r"known: emoji, .*no folder and no hub id"):
        load(source)


def test_a_mistyped_name_is_met_with_a_suggestion():
    with pytest.raises(ModelError, match="'fashion-dti'; did you mean 'fashion-dit'"):
        load("fashion-dti")
    with pytest.raises(UnknownNameError, match="did you mean 'fashion-unet'"):
        read_card("fashion-uent")


def test_an_unknown_dtype():
    with pytest.raises(UnknownNameError, match=r"no dtype 'fp8'.*known: bf16, fp16, fp32"):
        load("fashion-dit", dtype="fp8")


@pytest.mark.parametrize("device", ["cuda", "nonsense", "cuda:99"])
def test_a_device_that_cannot_be_used(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("here it can be used")
    with pytest.raises(ModelError, match=f"device '{device}' cannot be used: .*; try cpu"):
        load("fashion-dit", device=device)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ModelError, match=r"neither a pipeline .* nor a checkpoint"):
        load(tmp_path)


def test_a_checkpoint_without_schedule(checkpoint):
    (checkpoint / "scheduler_config.json").unlink()
    with pytest.raises(ModelError, match=r"put its scheduler_config\.json or a card\.json beside"):
        load(checkpoint)


def test_weights_that_are_not_those_of_the_card(checkpoint):
    write_card(checkpoint, sha256="0" * 64)
    with pytest.raises(ModelError, match=r"safetensors is not the file its card\.json names"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"schedule": "flow"}, "does not fit its folder"),
        ({"schedule": {"family": "flow"}}, "does not fit its folder: .*'params'"),
        ({"schedule": {"family": "flwo", "params": {}}}, "did you mean 'flow'"),
        ({"prediction": "noise"}, "no prediction 'noise'"),
    ],
    ids=str,
)
def test_a_card_that_cannot_be_read(checkpoint, changes, text):
    write_card(checkpoint, **changes)
    with pytest.raises(FewstepError, match=text):
        load(checkpoint)


def damage(checkpoint, how):
    config, weights = checkpoint / "config.json", checkpoint / WEIGHTS
    match how:
        case "no weights":
            weights.unlink()
        case "garbage":
            weights.write_bytes(b"garbage garbage")
        case "other sizes":
            edit(config, block_out_channels=[8])
        case "no json":
            config.write_text("{")
        case "no class":
            edit(config, _class_name="Nope")
        case "a scheduler":
            edit(config, _class_name="DDPMScheduler")
        case "a missing tensor":
            edit(config, class_embed_type="timestep")
        case "a list":
            config.write_text("[]")


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("no weights", "cannot load .*no file named diffusion_pytorch_model"),
        ("garbage", "cannot load .*weights"),
        ("other sizes", "cannot load .*expected shape"),
        ("no json", r"cannot read .*config\.json"),
        ("no class", "names no model class of diffusers: 'Nope'"),
        ("a scheduler", "names no model class"),
        ("a missing tensor", "cannot load"),
        ("a list", "must hold a JSON object"),
    ],
)
def test_a_damaged_checkpoint(checkpoint, how, text):
    damage(checkpoint, how)
    with pytest.raises(ModelError, match=text):
        load(checkpoint)


@pytest.mark.parametrize("kind", ["checkpoint", "ddpm"])
def test_stored_tensors_that_no_part_of_the_network_takes(saved, tmp_path, kind):
    """A config of fewer blocks than are stored is another network."""
    folder = Path(shutil.copytree(saved / kind, tmp_path / kind))
    edit(folder / ("" if kind == "checkpoint" else "unet") / "config.json", layers_per_block=0)
    with pytest.raises(ModelError, match=r"no place for \d+ of the stored tensors, such as \w+\."):
        load(folder)


def test_a_damaged_pipeline(saved, tmp_path):
    folder = Path(shutil.copytree(saved / "ddpm", tmp_path / "ddpm"))
    edit(folder / "unet" / "config.json", class_embed_type="timestep")
    with pytest.raises(ModelError, match="it lacks class_embedding"):
        load(folder)
    edit(folder / "unet" / "config.json", class_embed_type=None)
    edit(folder / "model_index.json", _class_name="Nope")
    with pytest.raises(ModelError, match=r"cannot load .*Nope"):
        load(folder)
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(ModelError, match="must hold a JSON object"):
        load(folder)


@pytest.mark.parametrize("source", [42, None])
def test_a_thing_without_a_network(source):
    with pytest.raises(ModelError, match=r"(int|NoneType) has neither a unet nor a transformer"):
        load(source)


def test_a_network_that_does_not_say_its_shape():
    with pytest.raises(ModelError, match="UNet2DModel does not say the shape of its samples"):
        load(DDPMPipeline(tiny_unet(sample_size=None), DDPMScheduler()))


def test_a_dtype_of_torch_is_as_good_as_its_name():
    outs = [
        answer(load("fashion-unet", dtype=dtype), class_labels=torch.tensor([0]))[1]
        for dtype in ("bf16", torch.bfloat16)
    ]
    assert torch.equal(*outs)
    with pytest.raises(FewstepError, match=r"no dtype 'torch\.int8'.*fp16"):
        load("fashion-dit", dtype=torch.int8)


def test_a_sampler_says_why_it_is_not_pickled_or_copied():
    sampler = Sampler.from_pretrained("fashion-dit")
    for duplicate in (pickle.dumps, copy.deepcopy):
        with pytest.raises(ModelError, match=r"fashion-dit cannot be pickled.*load it anew"):
            duplicate(sampler)
