"""Arguments: numbers of numpy and torch, texts in place of values, mistakes by name."""

import numpy as np
import pytest
import torch
from tiny import inputs, network

from fewstep import CFG, RectifiedFlow, Sampler, TaylorSeer, VPDiscrete, caching, from_module
from fewstep.models.arguments import as_integer, as_integers, as_numbers
from fewstep.models.caching import enable_cache
from fewstep.models.errors import FewstepError, SettingError, UnknownArgumentError
from fewstep.samplers.editing import Editor
from fewstep.samplers.grid import time_grid
from fewstep.samplers.guidance import Interval, PerturbedAttention, Thresholded
from fewstep.samplers.inversion import invert, reconstruct
from fewstep.solvers import solver, take_solver

LITE = "taylorseer:interval=3,level=last-block"


@pytest.fixture(scope="module")
def sampler():
    """A small class-conditional network, with a null class."""
    module = network("dit")
    facts = {"shape": (2, 8, 8), "num_classes": 10, "null_class": 10}
    flow = RectifiedFlow(time_scale=1000)
    return Sampler(from_module(module, schedule=flow, prediction="flow", **facts))


def draw(sampler, seeds=(0, 1, 2), **call):
    return sampler(seeds, **{"class_labels": 3, "nfe": 4, "solver": "ddim", **call}).samples


# Numbers


def test_whole_numbers_of_any_kind_become_ints():
    for given in (3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)):
        assert (as_integer(given, "n"), type(as_integer(given, "n"))) == (3, int)
        assert as_integers(given, "n", repeat=2) == [3, 3]
    rows = (range(3), [0, 1, 2], (0, np.int8(1), 2), np.arange(3), torch.arange(3), iter([0, 1, 2]))
    for given in rows:
        assert as_integers(given, "n", repeat=9) == [0, 1, 2]
    for given in (3.0, "3", None, True, np.array([1.0]), torch.tensor([1.5]), [[1]], {1: 2}):
        with pytest.raises(SettingError, match="n must be a whole number"):
            as_integers(given, "n")
        with pytest.raises(SettingError, match="n must be a whole number"):
            as_integer(given, "n")
    assert as_numbers(np.array([1.0, 0.5]), "n") == as_numbers(torch.tensor([1, 0.5]), "n")
    for given in (3, "ab", [1, "x"], np.eye(2)):
        with pytest.raises(SettingError, match="n must be a row of numbers"):
            as_numbers(given, "n")


def test_a_run_takes_numbers_of_numpy_and_torch(sampler):
    plain = draw(sampler)
    for seeds in (range(3), np.arange(3), torch.arange(3), [np.int64(0), 1, torch.tensor(2)]):
        assert torch.equal(draw(sampler, seeds), plain)
    for labels in (np.int64(3), torch.tensor(3), [3] * 3, np.full(3, 3), torch.full((3,), 3)):
        assert torch.equal(draw(sampler, class_labels=labels), plain)
    assert torch.equal(draw(sampler, nfe=np.int64(4), batch=np.int64(3)), plain)
    assert torch.equal(draw(sampler, nfe=None, steps=torch.tensor(4)), plain)
    times = [1.0, 0.6, 0.3, 0.0]
    listed = draw(sampler, nfe=None, grid=times)
    for grid in (np.array(times), torch.tensor(times, dtype=torch.float64), tuple(times)):
        assert torch.equal(draw(sampler, nfe=None, grid=grid), listed)
    assert torch.equal(draw(sampler, 1), draw(sampler, [1]))


# Texts in place of values


def test_a_run_takes_texts_for_values(sampler):
    values = {"guidance": CFG(2.0), "cache": TaylorSeer(interval=3, level="last-block")}
    texts = {"guidance": "cfg:scale=2", "cache": LITE, "solver": "dpmpp-2m:kind=taylor"}
    given = draw(sampler, solver=solver("dpmpp-2m", kind="taylor"), nfe=8, **values)
    assert torch.equal(draw(sampler, nfe=8, **texts), given)
    assert torch.equal(draw(sampler, solver=None), draw(sampler, solver="unipc-2"))
    narrow = Interval(CFG(3.0), 0.0, 0.5, "step")
    text = "cfg:scale=3+interval:low=0,high=0.5,in=step"
    assert torch.equal(draw(sampler, guidance=text), draw(sampler, guidance=narrow))


def test_grids_and_the_guidance_inside_another_are_taken_as_texts():
    schedule = VPDiscrete()
    grid = time_grid("karras:rho=5", schedule, 4)
    assert grid == time_grid("karras", schedule, 4, rho=5) != time_grid("karras", schedule, 4)
    assert solver("dpmpp-2m:kind=taylor") == solver("dpmpp-2m", kind="taylor")
    cfg, text = CFG(2.0), "cfg:scale=2"
    assert Interval(text, 0.1, 0.9) == Interval(cfg, 0.1, 0.9)
    assert Thresholded(text) == Thresholded(cfg)
    assert PerturbedAttention(inner=text) == PerturbedAttention(inner=cfg)


def test_caches_are_put_on_by_text(sampler):
    cached = draw(sampler, cache=LITE, nfe=8)
    with caching(sampler, LITE) as ledger:
        assert torch.equal(draw(sampler, nfe=8), cached)
    assert ledger.hits > 0
    with pytest.raises(FewstepError, match="did you mean 'taylorseer'"):
        enable_cache(sampler, "tailorseer")


def test_inversion_and_editors_take_numbers_and_texts(sampler):
    image = draw(sampler)[:1]
    way = {"class_labels": np.int64(3), "steps": np.int64(4), "solver": "ddim"}
    there = invert(sampler, image, **way)
    assert torch.equal(
        there.noise, invert(sampler, image, class_labels=3, steps=4, solver="ddim").noise
    )
    back = reconstruct(sampler, there, guidance="cfg:scale=1.5").samples
    assert torch.equal(back, reconstruct(sampler, there, guidance=CFG(1.5)).samples)
    edits = Editor(sampler, "flow-edit:steps=4,n_max=3")
    edited = edits(image, source=3, target=5, seeds=[7]).samples
    assert torch.equal(
        edits(image, source=np.int64(3), target=torch.tensor(5), seeds=7).samples, edited
    )


def test_settings_of_another_kind_are_refused_by_name():
    for given in (3, None, CFG(2.0), TaylorSeer, TaylorSeer(interval=3)):
        with pytest.raises(SettingError, match=r"solver=.* is no solver; give a name"):
            take_solver(given)


# Mistakes

WRONG = [
    ({"nfe": "4"}, "nfe must be a whole number, not '4'"),
    ({"nfe": 4.0}, "nfe must be a whole number"),
    ({"nfe": None, "steps": "4"}, "steps must be a whole number"),
    ({"batch": "3"}, "batch must be a whole number"),
    ({"seeds": "0-3"}, "seeds must be a whole number"),
    ({"seeds": [0.5]}, "seeds must be a whole number"),
    ({"class_labels": "dress"}, "class_labels must be a whole number"),
    ({"class_labels": [1, 2]}, "2 class labels for 3 seeds"),
    ({"solver": 3}, "solver=3 is no solver"),
    ({"grid": 3, "nfe": None}, "grid must be a row of numbers"),
    ({"cache": CFG(2.0)}, "cache=CFG.* is no cache"),
    ({"cache": TaylorSeer}, "cache=.* is no cache"),
    ({"guidance": 2.0}, "guidance=2.0 is not a guidance policy"),
    ({"conditions": torch.zeros(3)}, "conditions must be tensors by name"),
    ({"conditions": {"text": "a cat"}}, r"conditions\['text'\] must be a tensor"),
    ({"conditions": {"text": torch.tensor(1.0)}}, r"conditions\['text'\] of shape \(\)"),
    ({"negative": {"text": np.zeros((2, 4))}}, r"negative\['text'\] of shape \(2, 4\)"),
    ({"slover": "ddim"}, "no argument 'slover'; did you mean 'solver'"),
]


def test_mistakes_are_refused_by_the_name_of_their_argument(sampler):
    calls = []
    handle = sampler.network.module.register_forward_hook(lambda *_: calls.append(1))
    for call, text in WRONG:
        with pytest.raises(FewstepError, match=text):
            draw(sampler, **call)
    handle.remove()
    assert calls == []


def test_an_unknown_keyword_names_who_was_asked(sampler):
    with pytest.raises(UnknownArgumentError, match="known: final, grid, nfe, recipe, solver"):
        sampler.plan(step=3)
    with pytest.raises(UnknownArgumentError, match="did you mean 'steps'"):
        invert(sampler, draw(sampler), step=3)


def test_conditions_that_the_network_refuses_are_named():
    module, given = network("unet-condition"), inputs("unet-condition", batch=1)
    unet = from_module(
        lambda x, time, **conditions: module(x, time, **conditions)[0],
        schedule=RectifiedFlow(time_scale=1000),
        prediction="flow",
        shape=(2, 8, 8),
    )
    name = "encoder_hidden_states"
    text = given[name]
    assert draw(Sampler(unet), conditions={name: text.numpy()}, class_labels=None).isfinite().all()
    for conditions, wrong in (
        ({name: text[..., :7]}, r"conditions encoder_hidden_states \(3, 5, 7\): "),
        ({name: text, "colour": text}, r"colour \(3, 5, 12\): .*keyword argument 'colour'"),
    ):
        with pytest.raises(SettingError, match=wrong):
            draw(Sampler(unet), conditions=conditions, class_labels=None)
