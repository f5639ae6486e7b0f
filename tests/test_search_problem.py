"""What a schedule is searched for: blocks, teachers, objectives and the toy."""

import math

import pytest
import torch
from laws import GAUSSIAN, MIXTURE, f64
from torch.testing import assert_close

from fewstep.eval.data import DataError
from fewstep.eval.search.budget import Budget
from fewstep.eval.search.guided import guide_schedule
from fewstep.eval.search.objective import log_mse, names, objective, rmse
from fewstep.eval.search.problem import BLOCKS, Block, Problem, Teacher
from fewstep.eval.search.run import run
from fewstep.eval.search.search import Search
from fewstep.eval.search.size import SearchSize
from fewstep.eval.search.space import Space
from fewstep.eval.search.toy import TEACHER, encode_named, mixture, table_block, toy, toy_mean
from fewstep.models.denoiser import Network
from fewstep.models.errors import FewstepError, SettingError, UnknownNameError
from fewstep.models.prediction import Prediction
from fewstep.models.schedule import EDM, RectifiedFlow
from fewstep.samplers.grid import Final, time_grid
from fewstep.samplers.guidance import CFG
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import StepSchedule, solver

QUICK = Teacher(nfe=20)


def small(**fields):
    """The golden mixture with two branches, as a problem of few noises."""

    def forward(x, node, conditions):
        null = conditions["class_labels"].reshape(-1, *[1] * (x.ndim - 1)) == 2
        return torch.where(null, GAUSSIAN.x0(x, node), MIXTURE.x0(x, node))

    network = Network(
        forward=forward,
        schedule=RectifiedFlow(),
        prediction=Prediction.X0,
        shape=(2, 1, 2),
        num_classes=2,
        null_class=2,
        name="small",
    )
    return Problem.of(network, (6, 4, 4), **{"teacher": QUICK, **fields})


def ddim(problem, steps=4):
    return solver("ddim").step_schedule(time_grid("uniform", problem.network.schedule, steps))


# Problems


def conditional(**fields):
    """A network that draws what its condition says, as a problem on three conditions in turn."""

    def forward(x, node, conditions):
        return conditions["y"].reshape(-1, 1, 1, 1).expand_as(x)

    network = Network(
        forward=forward,
        schedule=RectifiedFlow(),
        prediction=Prediction.X0,
        shape=(1, 2, 2),
        needs=("y",),
        name="conditional",
    )
    given = {"conditions": {"y": torch.tensor([[0.5], [1.5], [2.5]])}, "teacher": QUICK}
    return Problem.of(network, (5, 4, 4), **{**given, **fields})


def test_conditions_reach_the_teacher_and_the_schedules(tmp_path):
    problem = conditional(cache=tmp_path)
    for name in BLOCKS:
        block = problem.block(name)
        expected = torch.tensor([seed % 3 + 0.5 for seed in block.seeds])
        for ends in (block.ends, problem.ends(ddim(problem), block)):
            assert_close(ends, expected.reshape(-1, 1, 1, 1).expand_as(ends))
    part = problem.block("train").pick([3, 1])
    assert_close(problem.ends(ddim(problem), part)[:, 0, 0, 0], expected_of(part))


def expected_of(block):
    return torch.tensor([seed % 3 + 0.5 for seed in block.seeds])


def test_negative_conditions_guide():
    negative = {"y": torch.tensor([[1.0]])}
    problem = conditional(negative=negative, cfg_scale=2.0)
    block = problem.block("validation")
    expected = 2.0 * expected_of(block) - 1.0
    assert_close(block.ends[:, 0, 0, 0], expected)
    assert_close(problem.ends(ddim(problem), block)[:, 0, 0, 0], expected)


def test_a_problem_without_what_its_network_needs_is_refused_at_once():
    with pytest.raises(FewstepError, match="conditional needs y; pass conditions"):
        conditional(conditions={})
    with pytest.raises(SettingError, match="has no unconditional branch"):
        conditional(cfg_scale=2.0)
    with pytest.raises(SettingError, match="class 7 does not exist"):
        small(labels=(0, 7))


def test_searches_with_other_conditions_are_others(tmp_path):
    def search(**fields):
        problem = conditional(**fields)
        return Search(
            problem=problem,
            objective=objective("terminal", problem.network),
            space=Space(process=problem.network.schedule),
            size=SearchSize(2),
            strategies=("grid",),
            budget=Budget("candidates", 1),
            folder=tmp_path,
        )

    run(search())
    run(search())
    with pytest.raises(SettingError, match="of another search: its conditions"):
        run(search(conditions={"y": torch.tensor([[0.0]])}))
    with pytest.raises(SettingError, match="of another search: its negative"):
        run(search(negative={"y": torch.tensor([[0.0]])}))


def test_blocks_are_disjoint_and_hold_what_they_say():
    problem = small()
    blocks = [problem.block(name) for name in BLOCKS]
    assert [len(block) for block in blocks] == [6, 4, 4]
    seeds = [seed for block in blocks for seed in block.seeds]
    assert len(set(seeds)) == 14
    assert min(seeds) == 1_000_000
    for block in blocks:
        assert block.noise.dtype == block.ends.dtype == torch.float32
        assert block.noise.shape == block.ends.shape == (len(block), 2, 1, 2)
        assert block.labels == tuple(seed % 2 for seed in block.seeds)
        assert block is problem.block(block.name)


def test_ends_are_those_of_the_sampler():
    problem = small(batch=4)
    block, made = problem.block("train"), ddim(problem)
    wanted = Sampler(problem.network)(block.seeds, class_labels=block.labels, solver=made).samples
    assert torch.equal(problem.ends(made, block), wanted)
    assert torch.equal(problem.ends(made, block, limit=3), wanted[:3])
    taught = Sampler(problem.network)(
        block.seeds, class_labels=block.labels, solver="unipc-3", nfe=20
    ).samples
    assert torch.equal(block.ends, taught)


def test_ends_come_before_decoding():
    problem = small()
    decoded = problem.network.__dict__ | {"decode": lambda x: x.new_zeros(len(x), 3, 8, 8)}
    latent = Problem.of(Network(**decoded), (6, 4, 4), teacher=QUICK)
    assert torch.equal(latent.block("train").ends, problem.block("train").ends)
    made = ddim(problem)
    found = [each.ends(made, each.block("train")) for each in (latent, problem)]
    assert torch.equal(*found)


def test_guided_problems_guide_the_teacher_and_plain_schedules():
    problem = small(cfg_scale=3.0)
    block, made = problem.block("train"), ddim(problem)
    call = {"class_labels": block.labels, "guidance": CFG(3.0)}
    sampler = Sampler(problem.network)
    assert torch.equal(block.ends, sampler(block.seeds, solver="unipc-3", nfe=20, **call).samples)
    assert torch.equal(problem.ends(made, block), sampler(block.seeds, solver=made, **call).samples)


def test_network_rows_are_counted():
    problem = small(cfg_scale=3.0)
    block = problem.block("train")
    assert problem.evaluations == 0  # the teacher is not counted
    problem.ends(ddim(problem), block)
    assert problem.evaluations == 6 * 4 * 2
    problem.ends(guide_schedule(ddim(problem), 3.0, [0, 2]), block)
    assert problem.evaluations == 6 * 4 * 2 + 6 * (4 + 2)


def test_parts_of_blocks():
    block = small().block("train")
    part = block.pick([4, 1])
    assert part.seeds == (block.seeds[4], block.seeds[1])
    assert part.labels == (block.labels[4], block.labels[1])
    assert torch.equal(part.noise, block.noise[[4, 1]])
    assert torch.equal(part.ends, block.ends[[4, 1]])
    assert block.first(2).seeds == block.seeds[:2]
    for n in (0, 7):
        with pytest.raises(SettingError, match="the train block has 6 noises, not"):
            block.first(n)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test": range(1_000_005, 1_000_009)}, "train and test share seed 1000005"),
        ({"validation": [3, 4, 3]}, "validation block lists a seed twice"),
        ({"train": []}, "no seeds"),
        ({"train": [-1]}, "seed -1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"teacher": Teacher(solver="unipc3")}, "did you mean 'unipc-3'"),
        ({"teacher": Teacher(steps=4)}, "not both"),
    ],
)
def test_bad_problems_are_refused(fields, message):
    with pytest.raises(FewstepError, match=message):
        small(**fields)


def test_a_teacher_is_kept_and_taken_up_again(tmp_path):
    first = small(cache=tmp_path).block("train").ends
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 1
    stamp = kept[0].stat().st_mtime_ns
    assert torch.equal(small(cache=tmp_path).block("train").ends, first)
    assert kept[0].stat().st_mtime_ns == stamp
    small(cache=tmp_path, teacher=Teacher(nfe=10)).block("train")
    assert len(list(tmp_path.iterdir())) == 2


# Objectives


def block_of(ends):
    n = len(ends)
    return Block("train", tuple(range(n)), None, torch.zeros_like(ends), ends)


def test_terminal_errors_in_closed_form():
    block = block_of(torch.zeros(2, 2))
    ends = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert rmse(ends, block) == pytest.approx(math.sqrt(26 / 4))
    assert log_mse(ends, block) == pytest.approx((math.log(12.5) + math.log(0.5)) / 2)


@pytest.mark.parametrize("name", ["terminal", "log_mse"])
def test_objectives_of_schedules(name):
    problem = small()
    aim, block, made = objective(name, problem.network), problem.block("train"), ddim(problem)
    assert aim.name == name
    figure = {"terminal": rmse, "log_mse": log_mse}[name]
    assert aim(problem, made, block) == figure(problem.ends(made, block), block)
    better = solver("unipc-3").step_schedule(time_grid("uniform", problem.network.schedule, 12))
    assert aim(problem, better, block) < aim(problem, made, block)


def test_what_is_not_finite_is_the_worst():
    problem = small()
    block, aim = problem.block("train"), objective("terminal", problem.network)
    assert aim.of(block.ends * math.nan, block) == math.inf
    body = ddim(problem).model_dump(mode="json")
    body["steps"][1]["dA"] = 1e200
    assert aim(problem, StepSchedule.model_validate(body), block) == math.inf


def grey():
    """Images that the package's small extractor can see."""
    mean, std = torch.full((1024,), -0.5), torch.full((1024,), 0.3)
    law = type(GAUSSIAN).single(mean, std)
    return Problem.of(law.network(RectifiedFlow(), (1, 32, 32)), (6, 2, 2), teacher=QUICK)


def test_objectives_of_images():
    problem = grey()
    block = problem.block("train")
    feature, fd = (objective(name, problem.network) for name in ("feature", "fd"))
    assert feature.of(block.ends, block) == 0.0
    near, far = (block.ends + shift for shift in (0.02, 0.4))
    assert 0.0 < feature.of(near, block) < feature.of(far, block)
    assert math.isfinite(fd.of(block.ends, block))
    assert fd.of(torch.ones_like(block.ends), block) > fd.of(block.ends, block)


def test_objectives_need_what_they_look_at(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network, pictures = small().network, grey().network
    with pytest.raises(UnknownNameError, match="did you mean 'terminal'"):
        objective("terminals", network)
    with pytest.raises(FewstepError, match="fewstep data fashion-mnist"):
        objective("kid", pictures)
    with pytest.raises(DataError, match="there are no images at"):
        objective("kid", pictures, reference=str(tmp_path / "none.zip"))
    with pytest.raises(FewstepError):
        objective("feature", network)  # 2x1 pixels
    with pytest.raises(SettingError, match="drop the reference"):
        objective("feature", pictures, reference="fashion-mnist")
    with pytest.raises(SettingError, match="uses no reference"):
        objective("terminal", network, reference="fashion-mnist")
    with pytest.raises(FewstepError):
        objective("fid", pictures, weights=tmp_path / "none.pt")
    assert "fd" in names()


# The toy


TABLE = {
    ("ddim", "karras"): 0.2914,
    ("dpmpp-2m", "logsnr"): 0.2370,
    ("dpmpp-2m", "karras"): 0.2124,
    ("unipc-3", "logsnr"): 0.2196,
}


@pytest.mark.slow
def test_the_toy_gives_the_figures_of_its_table():
    block, problem = table_block(), toy()
    found = {each: rmse(problem.ends(encode_named(*each, 5), block), block) for each in TABLE}
    assert found == pytest.approx(TABLE, abs=5e-5)


def test_the_denoiser_of_the_toy_is_the_mean_of_the_posterior():
    """Against the same law with full covariances, by Bayes' rule on Gaussians."""
    law, node = mixture(), EDM().at(0.7)
    x = mixture().draw(3, torch.Generator().manual_seed(0)) + 0.3
    logs, means = [], []
    for k in range(12):
        inner = law.axes[k] @ (law.spread[k] - law.floor**2).diag() @ law.axes[k].T
        data = inner + law.floor**2 * torch.eye(32, dtype=torch.float64)
        seen = data + node.sigma**2 * torch.eye(32, dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(law.means[k], seen)
        logs.append(law.weights[k].log() + normal.log_prob(x))
        means.append(law.means[k] + (x - law.means[k]) @ torch.linalg.solve(seen, data))
    posterior = torch.stack(logs, 1).softmax(1)
    wanted = torch.einsum("bk,kbd->bd", posterior, torch.stack(means))
    assert_close(law.x0(x, node), wanted, rtol=0.0, atol=1e-12)


def test_samples_of_the_toy_have_its_moments():
    law = mixture()
    drawn = law.draw(40_000, torch.Generator().manual_seed(0))
    assert_close(drawn.mean(0), law.mean, rtol=0.0, atol=0.02)
    assert float(drawn.std()) == pytest.approx(0.576, abs=0.005)


def test_the_toy_is_a_problem():
    problem = toy((4, 2, 2))
    block = problem.block("train")
    assert problem.teacher == TEACHER
    made = encode_named("dpmpp-2m", "logsnr", 5)
    assert made.t[-1] == pytest.approx(EDM().sigma_min, rel=1e-14)
    with_mean = {**made.model_dump(), "afs": toy_mean().model_dump(), "nfe": 4}
    ends = problem.ends(StepSchedule.model_validate(with_mean), block)
    assert torch.isfinite(ends).all()
    final = time_grid("logsnr", EDM(), 5, Final.SIGMA_MIN)
    assert made.grid() == final
    assert f64(toy_mean().values()).shape == (1, 32)
