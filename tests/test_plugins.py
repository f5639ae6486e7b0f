"""The plug-ins of other engines: what those call, without them."""

import copy
import json
import sys
import tomllib
import types
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fewstep import SolverScheduler
from fewstep.models.errors import SettingError
from fewstep.plugins.sglang import NAMES, PATH, TESTED, FewstepScheduler, register

FLOW = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "_diffusers_version": "0.35.0",
}
GROUPS = ("sglang.multimodal_gen.plugins", "vllm_omni.general_plugins", "vllm_omni.schedulers")


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "engines.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert SolverScheduler.from_pretrained("model/scheduler").config["solver"] == "unipc-3"


def find(path):
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def test_entry_points_are_there():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(project["entry-points"]) == set(GROUPS)
    found = [find(path) for group in GROUPS for path in project["entry-points"][group].values()]
    assert found[0] is register
    assert found[1]() is None
    assert found[2] is SolverScheduler
    assert find(PATH) is FewstepScheduler


# ---- sglang


def run(scheduler, steps=6):
    """Does as its denoising stage, on the exact velocity of one point of data."""
    scheduler.set_timesteps(steps, device="cpu")
    scheduler.set_begin_index(0)
    data = torch.full((1, 4, 2, 2), 0.5)
    x = scheduler.init_noise_sigma * torch.randn(data.shape, generator=torch.manual_seed(0))
    for t in scheduler.timesteps:
        read = scheduler.scale_model_input(x, t)
        velocity = (read - data) / (t / scheduler.num_train_timesteps)
        x = scheduler.step(
            model_output=velocity, timestep=t, sample=x, generator=None, eta=0.0, return_dict=False
        )[0]
    return x, float((x - data).abs().max())


def test_a_scheduler_of_sglang_is_made_of_its_config_and_runs():
    for solver in (None, "unipc-3", "dpmpp-2m", "heun"):
        scheduler = FewstepScheduler(**FLOW, **({} if solver is None else {"solver": solver}))
        scheduler.set_shift(8)
        first, error = run(scheduler)
        assert error < 1e-6, solver
        assert torch.equal(run(scheduler)[0], first)
        assert torch.equal(run(copy.deepcopy(scheduler))[0], first)


def test_its_shift_takes_the_place_of_that_by_the_size_of_images():
    scheduler = FewstepScheduler(**FLOW, solver="euler")
    scheduler.set_shift(8)
    scheduler.set_timesteps(4)
    t = torch.tensor([1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(scheduler.timesteps, 1000.0 * 8.0 * t / (1.0 + 7.0 * t))
    assert (scheduler.order, scheduler.num_train_timesteps) == (1, 1000)


def test_a_folder_that_diffusers_saved_is_run_as_it_says(tmp_path):
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", **FLOW, "use_dynamic_shifting": False}
    saved = SolverScheduler.from_config(flow, solver="unipc-3")
    saved.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert config.pop("_class_name") in NAMES
    made = FewstepScheduler(**config)
    saved.set_timesteps(5)
    made.set_timesteps(5)
    assert torch.equal(made.timesteps, saved.timesteps)
    assert made.choices == saved.choices


def test_the_plugin_registers_it_and_names_the_version_it_is_tested_with(monkeypatch, caplog):
    class BaseScheduler:
        known = ()

        @classmethod
        def register(cls, made):
            cls.known = (*cls.known, made)

    names = {}
    registry = types.SimpleNamespace(register_model=names.__setitem__)
    runtime = "sglang.multimodal_gen.runtime.models"
    for name, values in {
        f"{runtime}.registry": {"ModelRegistry": registry},
        f"{runtime}.schedulers.base": {"BaseScheduler": BaseScheduler},
        "sglang.version": {"__version__": "9.9"},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("sglang", "sglang.multimodal_gen", "sglang.multimodal_gen.runtime", runtime):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, f"{runtime}.schedulers", types.ModuleType("schedulers"))
    register()
    assert names == dict.fromkeys(NAMES, PATH)
    assert BaseScheduler.known == (FewstepScheduler,)
    assert f"tested with sglang {TESTED}, and this is 9.9" in caplog.text


# ---- vllm-omni


def test_a_scheduler_of_vllm_omni_takes_a_shift_for_each_request(tmp_path):
    """As it builds the scheduler of Wan, whose shift comes with the request."""
    base = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}
    base |= {"use_flow_sigmas": True, "flow_shift": 3.0, "num_train_timesteps": 1000}
    SolverScheduler.from_config(base, solver="euler").save_pretrained(tmp_path / "scheduler")
    scheduler = SolverScheduler.from_pretrained(tmp_path, subfolder="scheduler", solver="unipc-3")
    shifted = SolverScheduler.from_config({**base, "flow_shift": 5.0}, solver="unipc-3")
    scheduler.set_timesteps(6, device="cpu", shift=5.0)
    shifted.set_timesteps(6)
    assert torch.equal(scheduler.timesteps, shifted.timesteps)
    assert scheduler.config["flow_shift"] == 5.0


def test_a_shift_of_a_network_without_one_is_refused():
    base = {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "beta_start": 1e-4}
    base |= {"beta_end": 0.02, "num_train_timesteps": 1000}
    with pytest.raises(SettingError, match="flow"):
        SolverScheduler.from_config(base).set_timesteps(6, shift=5.0)
