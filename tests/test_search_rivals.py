"""diffusers' schedulers that a search is compared with: chosen once, at its size, or left out."""

import pytest
import torch
from test_search_guided import searching
from test_search_problem import small

from fewstep.eval.experiments.rivals import RivalSampler
from fewstep.eval.requests import SearchRequest
from fewstep.eval.search import rivals
from fewstep.eval.search.command import summarize
from fewstep.eval.search.identity import (
    SearchRivals,
    read_scores,
    write_rivals,
)
from fewstep.eval.search.rivals import choose_search_rivals, reach_rival_ends
from fewstep.eval.search.run import run
from fewstep.eval.search.search import Search
from fewstep.eval.search.size import SearchSize
from fewstep.models.errors import SettingError


def of_nfe(folder, **fields):
    fields = {"problem": small(), "strategies": ("grid",), "size": SearchSize(5), **fields}
    return searching(folder, 4, **fields)


def test_the_nearest_on_validation_are_chosen_once(tmp_path, monkeypatch):
    search = of_nfe(tmp_path)
    block = search.problem.block("validation")
    chosen = choose_search_rivals(search)
    assert chosen.left_out is None
    errors = [
        search.objective.of(reach_rival_ends(search, spec, block), block) for spec in chosen.specs
    ]
    assert len(errors) == 3
    assert errors == sorted(errors)
    plain = reach_rival_ends(search, "euler", block)
    assert errors[0] < search.objective.of(plain, block)
    monkeypatch.setattr(rivals, "choose_rivals", None)
    assert choose_search_rivals(search) == chosen
    with pytest.raises(TypeError):
        choose_search_rivals(of_nfe(tmp_path, size=SearchSize(6)))


def test_the_figures_of_a_rival_are_those_of_its_number_of_evaluations(tmp_path, monkeypatch):
    """Searches of several sizes share a folder, and often the nearest rival."""
    monkeypatch.setattr(rivals, "choose_rivals", lambda *_: ["dpmpp-2m"])
    for nfe in (4, 8):
        run(of_nfe(tmp_path, size=SearchSize(nfe)))
    scores = [v.score for k, v in read_scores(tmp_path).items() if k.startswith("diffusers")]
    assert len(scores) == 2
    assert scores[1] < 0.7 * scores[0]


def test_rivals_take_no_more_than_their_share_of_a_time(tmp_path, monkeypatch):
    """Each takes a second here: of 10, six are for few noises, and the rest for the finalists."""
    now, judged = [0.0], []

    def judge(search, block, spec):
        now[0] += 1.0
        judged.append((spec, len(block)))
        return 5.0 - now[0] if now[0] < 4.0 else now[0]

    monkeypatch.setattr(rivals.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(rivals, "_judge", judge)
    monkeypatch.setattr(Search, "count_few", lambda self, validation: validation // 2)
    chosen = choose_search_rivals(of_nfe(tmp_path, rival_seconds=10.0))
    few, every = judged[0][1], judged[-1][1]
    assert [count for _, count in judged] == [few] * 6 + [every] * 4
    assert few < every
    assert chosen.specs == tuple(spec for spec, _ in judged[6:9])
    assert judged[6][0] == judged[2][0]  # the nearest on few noises comes first
    hurried = of_nfe(tmp_path, size=SearchSize(6), rival_seconds=0.0)
    assert len(choose_search_rivals(hurried).specs) == 1


def test_a_rival_spends_what_a_schedule_does(tmp_path):
    guided = searching(tmp_path, rows=7)  # two rows a step
    problem, block = guided.problem, guided.problem.block("test")
    sampler = RivalSampler(problem.network, "dpmpp-2m", 3)
    ends = sampler(block.seeds, class_labels=block.labels, guidance=problem.guidance).samples
    torch.testing.assert_close(reach_rival_ends(guided, "dpmpp-2m", block), ends)
    assert reach_rival_ends(of_nfe(tmp_path, size=SearchSize(4)), "heun", block) is None


def test_a_result_says_why_rivals_were_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "choose_rivals", lambda *_: [])
    found = run(of_nfe(tmp_path))
    assert " on " in found.baseline[0]
    request = SearchRequest(network="toy", nfe=5, log=tmp_path)
    lines = summarize(tmp_path / "out.json", found, request)
    reason = "no scheduler of diffusers runs on this network"
    assert f"without diffusers' schedulers: {reason}" in lines


def test_a_search_without_hand_made_strategies_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "choose_rivals", None)
    assert choose_search_rivals(of_nfe(tmp_path, strategies=("evolve",))) == SearchRivals()


def test_a_damaged_file_is_refused(tmp_path):
    write_rivals(tmp_path, {"nfe5": SearchRivals(specs=("unipc",))})
    assert choose_search_rivals(of_nfe(tmp_path)).specs == ("unipc",)
    (tmp_path / "rivals.json").write_text('{"nfe5": {"specs": 3}}')
    with pytest.raises(SettingError, match=r"rivals\.json. is damaged"):
        choose_search_rivals(of_nfe(tmp_path))


def test_noises_of_the_finalists_grow_with_validation(tmp_path):
    search = of_nfe(tmp_path)
    assert [search.count_few(n) for n in (2, 16, 64, 128, 1000)] == [2, 4, 8, 16, 16]
