"""Where a run of `SolverScheduler` begins: at the evaluation that its first timestep names."""

import copy
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep import SolverScheduler
from fewstep.models.errors import SettingError
from fewstep.models.schedule import Node

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VP = diffusers.DDIMScheduler(**SD, clip_sample=False).config
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
EDM = diffusers.EDMEulerScheduler().config
MEAN, SPREAD = 0.3, 0.2  # of the data


def planned(config, steps: int = 20, **own) -> SolverScheduler:
    scheduler = SolverScheduler.from_config(config, **own)
    scheduler.set_timesteps(steps)
    return scheduler


def listed(solver: str, steps: int = 10) -> SolverScheduler:
    """As flow pipelines plan a run: by a list, so that they take evaluations for steps."""
    scheduler = SolverScheduler.from_config(FLOW, solver=solver)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    return scheduler


def node_of(scheduler, n: int) -> Node:
    return scheduler._calls[n].node


def states(node: Node) -> Tensor:
    """Noisy data at a node: four rows with the mean and the variance of the exact law."""
    x0, eps = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]]).double().unsqueeze(-1)
    return node.alpha * (MEAN + SPREAD * x0) + node.sigma * eps


def answer(scheduler, x: Tensor, node: Node) -> Tensor:
    """What a network says that knows the data: normal, of this mean and spread."""
    off = x - node.alpha * MEAN
    variance = (node.alpha * SPREAD) ** 2 + node.sigma**2
    x0, eps = MEAN + node.alpha * SPREAD**2 * off / variance, node.sigma * off / variance
    if scheduler.process.prediction == "edm":
        k = node.sigma
        total = k**2 + 0.25
        return (x0 - 0.25 / total * x) / (k * 0.5 / total**0.5)
    return eps - x0 if scheduler.process.fixed.family == "flow" else eps


def end_from(scheduler, begin: int, labels=None) -> Tensor:
    """A loop written by hand over what is left of a run."""
    x = states(node_of(scheduler, begin))
    labels = scheduler.timesteps[begin:] if labels is None else labels
    for n, t in enumerate(labels, start=begin):
        node = node_of(scheduler, n)
        if scheduler.process.prediction == "edm":
            seen = scheduler.scale_model_input(x, t) / x
            torch.testing.assert_close(seen, torch.full_like(x, 1 / (node.sigma**2 + 0.25) ** 0.5))
        x = scheduler.step(answer(scheduler, x, node), t, x, return_dict=False)[0]
    assert scheduler.nfe == len(labels)
    return x


CASES = [(FLOW, "euler"), (FLOW, "unipc-3"), (FLOW, "heun"), (VP, "ddim"), (VP, "unipc-3")]
CASES += [(VP, "heun"), (EDM, "euler"), (EDM, "heun")]


@pytest.mark.parametrize(("config", "name"), CASES, ids=lambda each: str(each)[:7])
def test_a_loop_over_the_last_timesteps_begins_at_the_first_of_them(config, name):
    """From the law of the noisy data there, a run ends at the law of the data."""
    scheduler = planned(config, solver=name)
    begin = 12 * scheduler.order
    end = end_from(scheduler, begin)
    assert end.mean() == pytest.approx(MEAN, abs=0.003)
    assert scheduler.begin_index == begin
    told = planned(config, solver=name)
    told.set_begin_index(begin)
    assert torch.equal(end_from(told, begin), end)


def whole(labels: Tensor) -> list[int]:
    return [int(label) for label in labels]


HANDED = {
    "copies": lambda labels: list(labels.clone()),
    "numbers": lambda labels: labels.tolist(),
    "whole": whole,
    "whole tensors": lambda labels: list(labels.long()),
    "numpy": lambda labels: list(labels.numpy()),
    "float64": lambda labels: list(labels.double()),
    "a row": lambda labels: [label.expand(3) for label in labels],
    "a copied row": lambda labels: [label.repeat(3, 1) for label in labels],
    "scaled there and back": lambda labels: list(labels / 1000 * 1000),
    "the first alone": lambda labels: [labels[0], *[None] * (len(labels) - 1)],
}


@pytest.mark.parametrize("how", HANDED)
def test_a_timestep_may_be_any_copy_of_its_label(how):
    for config, name in ((VP, "heun"), (VP, "ddim"), (FLOW, "heun")):
        wanted = end_from(planned(config, solver=name, grid="karras"), 12)
        scheduler = planned(config, solver=name, grid="karras")
        handed = HANDED[how](scheduler.timesteps[12:])
        assert torch.equal(end_from(scheduler, 12, handed), wanted)


def test_no_timestep_begins_at_the_beginning():
    scheduler = planned(VP, solver="ddim")
    wanted = end_from(scheduler, 0)
    assert torch.equal(end_from(planned(VP, solver="ddim"), 0, [None] * 20), wanted)
    assert scheduler.begin_index is None


def test_a_label_that_repeats_names_the_first_call_of_a_step():
    scheduler = planned(VP, solver="heun")
    assert scheduler.timesteps[3] == scheduler.timesteps[4]
    scheduler.step(torch.zeros(1, 1), float(scheduler.timesteps[3]), torch.zeros(1, 1))
    assert (scheduler.begin_index, scheduler.step_index) == (4, 5)


WRONG = [
    (0.0, "timestep 0 is not among the labels of this run, which go from 999 to 49"),
    (float("nan"), "timestep nan is not among the labels"),
    ([1, 2], r"must be one label of the network, not \[1, 2\]"),
    (torch.tensor([999.0, 949.0]), r"must be one label of the network, not a tensor of \(2,\)$"),
    ("all", r"must be one label of the network, not a tensor of \(20,\)$"),
]


@pytest.mark.parametrize(("timestep", "message"), WRONG)
def test_a_timestep_of_no_evaluation_is_refused(timestep, message):
    scheduler = planned(VP, solver="ddim", grid="uniform")
    timestep = scheduler.timesteps if isinstance(timestep, str) else timestep
    with pytest.raises(SettingError, match=message):
        scheduler.step(torch.zeros(1, 1), timestep, torch.zeros(1, 1))


def test_a_rounded_timestep_that_may_be_either_of_two_is_refused():
    scheduler = planned(VP, 500, solver="ddim", grid="uniform")
    with pytest.raises(SettingError, match="timestep 500 is rounded and may be 507 or 493"):
        scheduler.step(torch.zeros(1, 1), torch.tensor(500.0).bfloat16(), torch.zeros(1, 1))


@pytest.mark.parametrize("told", [False, True])
def test_a_timestep_of_another_evaluation_names_both(told):
    scheduler = planned(VP, solver="ddim", grid="uniform")
    if told:
        scheduler.set_begin_index(2)
    x, (*_, second, third, fourth) = torch.zeros(1, 1), scheduler.timesteps[:4]
    out = scheduler.step(x, third, x, return_dict=False)[0]
    for other in (second, float(second), int(second), second.clone()):
        with pytest.raises(SettingError, match="timestep 949 is not that of evaluation 4, 849"):
            scheduler.step(x, other, out)
    scheduler.step(x, fourth, out)
    scheduler = planned(VP, solver="ddim", grid="uniform")
    scheduler.set_begin_index(0)  # as pipelines say it that do not slice
    with pytest.raises(SettingError, match="timestep 849 is not that of evaluation 1, 999"):
        scheduler.step(x, 849, x)


def test_a_start_that_cannot_be_is_refused_at_the_first_step():
    x = torch.zeros(1, 1)
    table = planned(VP, 10, schedule="ays-sd15-nfe10")
    with pytest.raises(SettingError, match="a schedule goes all the way from noise to data"):
        table.step(x, table.timesteps[5], x)
    fireflow = planned(VP, 10, solver="fireflow")
    with pytest.raises(SettingError, match="fireflow cannot start at call 1 of step 3"):
        fireflow.step(x, fireflow.timesteps[3], x)
    churned = planned(EDM, 10, solver="heun:s_churn=5")
    with pytest.raises(SettingError, match="begins by adding noise"):
        churned.step(x, churned.timesteps[2], x)


class Reading(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what is read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += "_local_scalar_dense" in func.__name__ or "item" in func.__name__
        return func(*args, **(kwargs or {}))


def test_an_entry_of_the_timesteps_is_known_by_its_address_alone():
    for begin in (0, 12):
        scheduler = planned(VP, solver="dpmpp-2m")
        x, rest = torch.zeros(3, 1), scheduler.timesteps[begin:]
        with Reading() as mode:
            for t in rest:
                x = scheduler.step(torch.ones(3, 1), t.expand(3), x, return_dict=False)[0]
        assert (mode.reads, scheduler.nfe) == (0, len(rest))


def test_the_host_does_not_wait_for_a_timestep_of_an_accelerator():
    """A tensor without data stands for one: what cannot be read is taken for the next."""
    scheduler, x = planned(VP, solver="ddim"), torch.zeros(1, 1)
    far = torch.tensor(5.0, device="meta")
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        scheduler.step(x, far, x)  # but where the run begins must be known
    scheduler.set_begin_index(3)
    for n in (4, 5):
        x = scheduler.step(x, far, x).prev_sample
        assert scheduler.step_index == n


@pytest.mark.parametrize(
    "name", ["heun", "rf-solver", "dpm2", "res-2s", "res-3s", "ode-rk4", "dpmpp-3s"]
)
def test_flow_image_to_image_begins_at_every_evaluation(name):
    """Those pipelines skip evaluations, not steps: the noise is that of the first one left, be it
    the second of a step, and the run ends at the law of the data, however short it is."""
    whole = float(end_from(listed(name), 0).std(correction=0))
    for begin in range(len(listed(name).timesteps)):
        scheduler = listed(name)
        scheduler.set_begin_index(begin)
        end = end_from(scheduler, begin)
        assert end.mean() == pytest.approx(MEAN, abs=0.003)
        assert end.std(correction=0) == pytest.approx(whole, abs=0.035)
        assert torch.equal(end_from(listed(name), begin), end)


def test_what_is_left_of_a_step_leads_to_the_next_one():
    """Heun's second call is where the next step begins, so there the first answer changes nothing;
    the second call of RF-Solver's is half a step before it, which the DDIM step makes up for."""
    for name, begin in (("heun", 3), ("rf-solver", 3)):
        scheduler, later = listed(name), listed(name)
        ends = [node_of(scheduler, n) for n in (begin, begin + 1)]
        x = states(ends[0])
        out = answer(scheduler, x, ends[0])
        y = scheduler.step(out, scheduler.timesteps[begin], x, return_dict=False)[0]
        torch.testing.assert_close(y, x + (ends[1].sigma - ends[0].sigma) * out)
        if name == "heun":
            assert torch.equal(y, x)
        for n in range(begin + 1, len(later.timesteps)):
            t, node = later.timesteps[n], node_of(later, n)
            x, y = (
                each.step(answer(each, z, node), t, z, return_dict=False)[0]
                for each, z in ((later, y if n == begin + 1 else x), (scheduler, y))
            )
        assert torch.equal(x, y)


def test_a_scheduler_whose_state_is_swapped_serves_many_runs():
    """As a panorama is made, view by view; the timesteps are those of the first."""
    starts = [states(node_of(planned(VP, 6), 0)) * k for k in (1.0, 2.0, 3.0)]

    def end(x: Tensor) -> Tensor:
        scheduler = planned(VP, 6, solver="unipc-3")
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
        return x

    shared, views = planned(VP, 6, solver="unipc-3"), list(starts)
    held = [copy.deepcopy(shared.__dict__)] * 3
    for t in shared.timesteps:
        for n, x in enumerate(views):
            shared.__dict__.update(held[n])
            views[n] = shared.step(torch.tanh(x), t, x).prev_sample
            held[n] = copy.deepcopy(shared.__dict__)
    assert all(torch.equal(x, end(start)) for x, start in zip(views, starts, strict=True))


def test_copies_of_a_scheduler_take_whole_timesteps_frame_by_frame():
    """As diffusion forcing does: each frame is some steps behind the one before."""
    scheduler = planned(FLOW, 10, solver="unipc-2")
    own = SimpleNamespace()
    make = diffusers.SkyReelsV2DiffusionForcingPipeline.generate_timestep_matrix
    matrix, _, updated, _ = make(own, 4, scheduler.timesteps, 4, 2, 0, 2)
    frames = [copy.deepcopy(scheduler) for _ in range(4)]
    assert matrix.dtype == torch.int64
    x = torch.zeros(4, 1, 1)
    for row, now in zip(matrix, updated, strict=True):
        for n in now.nonzero().flatten().tolist():
            x[n] = frames[n].step(torch.ones(1, 1), row[n], x[n], return_dict=False)[0]
    assert [frame.nfe for frame in frames] == [10] * 4
    torch.testing.assert_close(x, torch.full_like(x, -1.0))


def test_numbers_of_numpy_begin_a_run():
    scheduler = planned(FLOW, solver="euler")
    scheduler.step(torch.zeros(1, 1), np.float32(scheduler.timesteps[5]), torch.zeros(1, 1))
    assert scheduler.begin_index == 5


def test_no_label_at_all_says_that_nothing_is_left():
    scheduler = planned(FLOW, solver="heun")
    x = torch.zeros(1, 1)
    with pytest.raises(
        SettingError, match=r"0 labels for 1 samples.*if nothing is left to run, raise strength"
    ):
        scheduler.scale_noise(x, scheduler.timesteps[39:], x)
