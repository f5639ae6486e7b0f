"""A budget of time holds for a whole search: its reference solution is sized to it."""

import time
from dataclasses import replace

import pytest
import torch
from laws import MIXTURE

from fewstep.eval.requests import SearchRequest
from fewstep.eval.search import prepare, reference_end
from fewstep.eval.search.command import run_search, summarize
from fewstep.eval.search.objective import FeatureError, find_features
from fewstep.eval.search.problem import Problem, Teacher
from fewstep.eval.search.reference import Reference, SizedReference, fit_reference
from fewstep.eval.search.reference_end import ReferenceEnd
from fewstep.eval.statistics import Moments
from fewstep.models.denoiser import Network
from fewstep.models.errors import SettingError
from fewstep.models.load import load
from fewstep.models.prediction import Prediction
from fewstep.models.schedule import RectifiedFlow
from fewstep.samplers.plan import make_plan
from fewstep.solvers.presets import preset

ASKED = Reference(noises=(100, 20, 100), nfe=200)
LEAST = Reference(noises=(10, 5, 10), nfe=20)


def evaluations(reference):
    return float(reference.nfe * sum(reference.noises))


@pytest.mark.parametrize(
    ("seconds", "noises", "nfe"),
    [
        (1e9, (100, 20, 100), 200),
        (44_000.0, (100, 20, 100), 200),
        (22_000.0, (50, 10, 50), 200),
        (11_000.0, (25, 5, 25), 200),
        (5_000.0, (10, 5, 10), 200),
        (4_999.0, (10, 5, 10), 199),
        (500.0, (10, 5, 10), 20),
    ],
)
def test_noises_are_given_up_first_and_evaluations_then(seconds, noises, nfe):
    fit = fit_reference(ASKED, LEAST, evaluations, seconds)
    assert fit == Reference(noises=noises, nfe=nfe)
    assert evaluations(fit) <= seconds


def test_nothing_is_smaller_than_the_least():
    assert fit_reference(ASKED, LEAST, evaluations, 499.0) is None
    assert fit_reference(LEAST, LEAST, evaluations, 500.0) == LEAST


LOADING = 5.0  # seconds


class Machine:
    """A clock, and a network that takes some time of it for each row, and some to load."""

    def __init__(self, seconds):
        self.now, self.seconds = 1000.0, seconds

    def load(self, name, **_):
        self.now += LOADING
        return Network(
            forward=self.forward,
            schedule=RectifiedFlow(),
            prediction=Prediction.X0,
            shape=(2, 1, 2),
            name=name,
        )

    def forward(self, x, node, conditions):
        self.now += self.seconds * len(x)
        return MIXTURE.x0(x, node)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    found = Machine(0.002)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "load", found.load)
    monkeypatch.setattr(time, "perf_counter", lambda: found.now)
    return found


def search(machine, out, **fields):
    """The results of a search, and the seconds that it took once its network was loaded."""
    start = machine.now
    request = SearchRequest(
        network="fast", strategy="grid,evolve", objective="terminal", out=out, **fields
    )
    found = list(run_search(request))
    return request, found, machine.now - start - LOADING


@pytest.mark.parametrize(("sizes", "seconds"), [("4", 20.0), ("3,5", 40.0)])
def test_the_whole_command_takes_the_time_of_its_budget(machine, tmp_path, sizes, seconds):
    out = tmp_path / "a.json"
    request, found, taken = search(machine, out, nfe_range=sizes, budget=f"{seconds:g}s")
    assert 0.8 * seconds < taken < 1.2 * seconds
    for path, each in found:
        facts = each.schedule.provenance
        train, validation, test = facts["noises"]
        assert (train, validation, test) < (1024, 256, 1024)
        assert facts["train_seeds"] == [1_000_000, 1_000_000 + train - 1]
        assert facts["teacher"]["nfe"] <= 200
        (line,) = (each for each in summarize(path, each, request) if "reference" in each)
        assert f"on {train} training, {validation} validation and {test} test noises" in line
        assert "in more time it would be 200 evaluations of 1024, 256 and 1024 noises" in line


def test_a_search_that_has_spent_its_time_says_the_same_again_and_goes_on_with_more(
    machine, tmp_path
):
    out = tmp_path / "a.json"
    _, first, _ = search(machine, out, nfe=4, budget="20s")
    log = tmp_path / "a.search" / "worker-0.jsonl"
    body = log.read_text()
    _, again, _ = search(machine, out, nfe=4, budget="20s")
    assert log.read_text() == body
    assert again[0][1].scores == first[0][1].scores
    _, more, taken = search(machine, out, nfe=4, budget="30s")
    assert len(log.read_text()) > len(body)
    assert taken < 30.0
    assert more[0][1].schedule.provenance["noises"] == first[0][1].schedule.provenance["noises"]


def test_other_budgets_leave_the_reference_as_it_was_asked_for(machine, tmp_path):
    asked = {"nfe": 3, "noises": "40,8,8", "teacher_nfe": 30, "out": tmp_path / "a.json"}
    request, found, taken = search(machine, budget="candidates=3", **asked)
    facts = found[0][1].schedule.provenance
    assert (facts["noises"], facts["teacher"]["nfe"]) == ([40, 8, 8], 30)
    assert not (tmp_path / "a.search" / "reference.json").exists()
    assert not any("in more time" in line for line in summarize(*found[0], request))
    assert taken > 0.002 * 30 * 56


def test_a_folder_keeps_the_reference_that_it_began_with(machine, tmp_path):
    asked = {"nfe": 4, "out": tmp_path / "a.json"}
    _, first, _ = search(machine, budget="20s", **asked)
    _, other, _ = search(machine, budget="candidates=1", **asked)
    noises = [found[0][1].schedule.provenance["noises"] for found in (first, other)]
    assert noises[0] == noises[1]
    with pytest.raises(SettingError, match="200 evaluations of 99, 9 and 99 noises; give another"):
        search(machine, budget="20s", noises="99,9,99", **asked)


def test_too_little_time_is_refused_and_leaves_nothing(machine, tmp_path):
    asked = {"nfe": 4, "out": tmp_path / "a.json"}
    refusal = r"the budget is too small.*give \d+\.\d times as much time"
    with pytest.raises(SettingError, match=refusal):
        search(machine, budget="3s", **asked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("body", ["[]", "{", '{"asked": 1}', "[" * 100_000])
def test_a_damaged_file_of_the_reference_is_named(body, tmp_path):
    (tmp_path / "reference.json").write_text(body)
    with pytest.raises(SettingError, match=r"reference\.json' is damaged"):
        SizedReference.load(tmp_path)


def test_processes_that_share_a_folder_have_one_reference(machine, tmp_path):
    """The second finds what the first has sized, on a machine that is slower by then."""
    asked = {"nfe": 4, "budget": "20s", "log": tmp_path / "log"}
    _, first, _ = search(machine, tmp_path / "a.json", **asked)
    machine.seconds *= 3.0
    _, second, _ = search(machine, tmp_path / "b.json", **asked)
    facts = [found[0][1].schedule.provenance for found in (first, second)]
    assert facts[0]["noises"] == facts[1]["noises"]
    assert facts[0]["teacher"] == facts[1]["teacher"]


# Where the reference ends.


class Grey:
    """Two features of an image: the mean and the deviation of its pixels."""

    name = "grey"

    def __call__(self, images):
        x = images.double().flatten(1) / 255.0
        return {"pool": torch.stack([x.mean(1), x.std(1)], 1)}


def even_images(grain):
    """A network of images of two brightnesses, with so much grain where sigma is below .05."""

    def forward(x, node, conditions):
        even = 0.5 * x.mean((1, 2, 3), keepdim=True).sign().expand_as(x)
        return even + grain * x.sign() * (node.sigma < 0.05)

    network = Network(
        forward=forward,
        schedule=RectifiedFlow(),
        prediction=Prediction.X0,
        shape=(1, 4, 4),
        name="even",
    )
    return Problem.of(network, (100, 1, 1), teacher=Teacher(nfe=10))


def real_images(problem):
    even = torch.tensor([0.5, -0.5]).repeat(100).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    features = FeatureError(problem.network, Grey())
    moments = Moments(2)
    moments.update(features.extract(even))
    return features, moments.statistics()


@pytest.mark.filterwarnings("ignore:a set of unknown origin")
def test_a_reference_jumps_over_times_where_the_network_is_grainy():
    problem = even_images(grain=0.3)
    end = reference_end.measure_end(problem, *real_images(problem))
    assert 0.05 <= end.time <= 0.2
    whole, chosen = end.judged[0], next(each for each in end.judged if each.time == end.time)
    assert (whole.time, whole.more, end.noises) == (0.0, (0.0, 0.0), 100)
    assert chosen.fd < whole.fd
    assert chosen.more[1] < 0.0
    grid = end.apply_to(problem).teacher.grid
    plan = make_plan(problem.network.schedule, "unipc-3", nfe=10, grid=grid)
    assert plan.grid.nodes[-2].t == pytest.approx(end.time)


@pytest.mark.filterwarnings("ignore:a set of unknown origin")
def test_a_reference_runs_to_the_end_where_nothing_is_gained():
    problem = even_images(grain=0.0)
    end = reference_end.measure_end(problem, *real_images(problem))
    assert len(end.judged) > 2
    assert end.time == 0.0
    assert end.apply_to(problem) is problem


def test_the_end_is_measured_once_for_a_folder_on_the_networks_own_data(tmp_path, monkeypatch):
    network = load("fashion-dit")
    problem = Problem.of(network, (100, 1, 1), cfg_scale=1.7)  # no schedule is shipped for that
    features = find_features("auto", network, None)
    assert find_features("auto", load("emoji"), None).extractor.name == "fd-emoji"
    other = replace(problem, network=replace(network, name="mine"))
    few = replace(problem, train=problem.train[:50])
    (tmp_path / "b").mkdir()
    for each, seer in ((other, features), (few, features), (problem, None)):
        assert reference_end.keep_end(each, seer, tmp_path) == ReferenceEnd()
    measured = ReferenceEnd(time=0.07, extractor="fd-small", noises=100)
    monkeypatch.setattr(reference_end, "measure_end", lambda *_: measured)
    assert reference_end.keep_end(problem, features, tmp_path) == measured
    shipped = reference_end.keep_end(replace(problem, cfg_scale=1.0), features, tmp_path / "b")
    facts = preset("fashion-dit-nfe5").provenance["reference_end"]
    assert shipped.model_dump(mode="json") == facts
    assert shipped.time > 0.0
    monkeypatch.undo()
    assert reference_end.keep_end(problem, features, tmp_path) == measured
    (tmp_path / reference_end.END_FILE).write_text("{")
    with pytest.raises(SettingError, match=r"reference-end\.json' is damaged.*another --log"):
        reference_end.keep_end(problem, features, tmp_path)
