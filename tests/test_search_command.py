"""`fewstep search` as typed: what it writes, and one clear line for every bad input."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fewstep.cli import app, sample_app
from fewstep.eval.search import command
from fewstep.eval.search.reference_end import JudgedEnd, ReferenceEnd
from fewstep.samplers.plan import make_plan
from fewstep.solvers import Schedule, solver

QUICK = ["--noises", "16,8,8", "--strategy", "grid,evolve", "--budget", "candidates=70"]
NET = ["--noises", "4,2,2", "--teacher-nfe", "6", "--strategy", "evolve"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def search(*words, code=0):
    result = CliRunner().invoke(app, ["search", *map(str, words)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*words):
    """The one line of a command that is refused."""
    result = search(*words, code=2)
    text = result.output.strip()
    assert text.startswith("error: ")
    assert "\n" not in text
    return text


def lines(folder):
    return sum(len(p.read_text().splitlines()) for p in folder.glob("worker-*.jsonl"))


def test_a_search_writes_a_schedule_and_says_what_it_found(tmp_path):
    result = search("toy", "--nfe", 4, *QUICK, "--out", "my.json")
    assert re.search(
        r"my.json: NFE 4, terminal [\d.]+ on test \(train [\d.]+, validation [\d.]+\), by"
        r" (grid|evolve) from 70 candidates\nbest hand-made: [\d.]+, [\w-]+ on ",
        result.output,
    )
    assert re.search(
        r"on 8 test noises, .*\n  searched: distance [\d.]+ \[[\d.]+, [\d.]+\], median [\d.]+\n"
        r"  hand-made, [\w-]+ on .+: distance [\d.]+ \[.*\n"
        r"  default, unipc-2 on logsnr[\w:=,.]*: distance ",
        result.output,
    )
    schedule = Schedule.load("my.json")
    assert schedule.nfe == 4
    assert schedule.provenance["free"] == ["corr", "ends", "est", "order", "pred", "relax", "times"]
    assert lines(tmp_path / "my.search") == 70
    root = ET.parse(tmp_path / "my.search" / "progress-nfe4.svg").getroot()
    shapes = {element.tag.rpartition("}")[2] for element in root}
    assert {"circle", "polyline", "text"} <= shapes
    assert "evolve" in "".join(root.itertext())


def test_the_last_step_of_a_table_is_chosen_and_told(monkeypatch):
    last = "fewstep.eval.search.choice.choose_last_row"
    monkeypatch.setattr(last, lambda rows: rows[-1])  # so that it moves
    words = ["--noises", "16,8,8", "--strategy", "grid,refine", "--budget", "candidates=120"]
    output = search("toy", "--nfe", 4, *words).output
    facts = Schedule.load("schedule.json").provenance
    assert facts["strategy"] == "refine"
    chosen = facts["last_row"]
    assert chosen["share"] == 1.0
    assert [each["share"] for each in chosen["validation"]] == [0.0, 0.25, 0.5, 1.0]
    mine = next(each for each in chosen["validation"] if each["share"] == chosen["share"])
    assert mine["distance"]["value"] == pytest.approx(facts["scores"]["val"], rel=1e-6)
    assert (
        f"last step: moved by {chosen['share']:g} to the last prediction, the least in distance"
        in output
    )
    columns = facts["columns"]
    assert columns["searched"]["distance"]["value"] == pytest.approx(facts["scores"]["test"])
    assert columns["hand_made"]["distance"]["value"] == pytest.approx(facts["baseline"]["test"])


def test_given_again_it_goes_on_or_repeats_itself(tmp_path):
    first = search("toy", "--nfe", 4, *QUICK).output
    body = (tmp_path / "schedule.json").read_bytes()
    assert search("toy", "--nfe", 4, *QUICK).output == first
    assert (tmp_path / "schedule.json").read_bytes() == body
    search("toy", "--nfe", 4, *QUICK[:-1], "candidates=90", "--quiet")
    assert lines(tmp_path / "schedule.search") == 90


def test_several_budgets_share_one_log(tmp_path):
    output = search("toy", "--nfe-range", "3-4", *QUICK, "--out", "r.json").output
    assert [Schedule.load(f"r-nfe{n}.json").nfe for n in (3, 4)] == [3, 4]
    assert lines(tmp_path / "r.search") == 70
    assert output.count("best hand-made") == 2
    assert not (tmp_path / "r.json").exists()


def test_times_alone_keep_the_base_solver():
    search("toy", "--nfe", 4, *QUICK, "--free", "times", "--base", "unipc-2", "--quiet")
    schedule = Schedule.load("schedule.json")
    assert schedule.steps == solver("unipc-2").encode(schedule.grid()).steps


@pytest.mark.parametrize(("afs", "extras"), [("zero", ["afs"]), ("mean", ["afs"])])
def test_an_analytic_first_step_is_told(afs, extras):
    search("toy", "--nfe", 3, *QUICK[:-1], "candidates=150", "--afs", afs, "--quiet")
    schedule = Schedule.load("schedule.json")
    log = Path("schedule.search/worker-0.jsonl").read_text().splitlines()
    assert any(json.loads(line)["schedule"]["afs"] is not None for line in log)
    assert schedule.provenance["extras"] == (extras if schedule.evaluations[0] is None else [])


def test_the_schedule_of_a_network_is_what_sample_takes(tmp_path):
    search("fashion-unet", "--nfe", 2, *NET, "--budget", "candidates=13", "--classes", "3,5")
    schedule = Schedule.load("schedule.json")
    assert schedule.provenance["labels"] == [3, 5]
    assert schedule.provenance["teacher"] == {"nfe": 6, "solver": "unipc-3", "final": "zero"}
    words = ["fashion-unet", "--schedule", "schedule.json", "--seeds", "0-1", "--json"]
    result = CliRunner().invoke(sample_app, words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ledger"]["nfe"] == 2


def test_the_last_node_of_the_reference_is_written_down():
    words = ["--nfe", 2, "--classes", "3", "--reference-end", 0.05, "--quiet"]
    search("fashion-dit", *words, *NET, "--budget", "candidates=13")
    schedule = Schedule.load("schedule.json")
    grid = schedule.provenance["teacher"]["grid"]
    assert grid.endswith("end=0.05")
    plan = make_plan(schedule.grid().schedule, "unipc-3", nfe=6, grid=grid)
    assert plan.grid.nodes[-2].t == 0.05


def test_a_measured_end_of_the_reference_is_written_down_and_told(monkeypatch):
    judged = [JudgedEnd(time=t, fd=fd, more=(-0.2, 0.0)) for t, fd in ((0.0, 2.5), (0.07, 2.25))]
    end = ReferenceEnd(time=0.07, extractor="fd-small", noises=128, judged=judged)
    monkeypatch.setattr(command, "keep_end", lambda *_: end)
    words = ["--nfe", 2, "--classes", "3"]
    result = search("fashion-dit", *words, *NET, "--budget", "candidates=13")
    said = "the reference ends in one step from 0.07, by fd-small of 128 images (0 has 2.500; 0.07"
    assert said in result.output
    facts = Schedule.load("schedule.json").provenance
    assert facts["teacher"]["grid"].endswith("end=0.07")
    assert ReferenceEnd.model_validate(facts["reference_end"]) == end


def test_a_guided_search_counts_both_branches():
    search("fashion-unet", "--nfe", 2, *NET, "--budget", "evals=160", "--cfg-scale", 2, "--quiet")
    facts = Schedule.load("schedule.json").provenance
    assert facts["cfg_scale"] == 2.0
    assert facts["budget"] == {**facts["budget"], "candidates": 10, "model_evals": 160}


SEEDS = ("--train-seeds", "0-3", "--validation-seeds", "3-5", "--test-seeds", "8-9")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("toy",), "give --nfe, such as 5, or --nfe-range, such as 3-10"),
        (("toy", "--nfe", 5, "--nfe-range", "3-4"), "give --nfe, such as 5, or --nfe-range"),
        (("toy", "--nfe", 0), "nfe must be at least 1, not 0"),
        (("toy", "--nfe", 5, "--strategy", "evolv"), "no strategy 'evolv'; did you mean 'evolve'?"),
        (("toy", "--nfe", 5, "--strategy", "grid,grid"), "names a strategy twice"),
        (("toy", "--nfe", 5, "--objective", "termnal"), "did you mean 'terminal'?"),
        (("toy", "--nfe", 5, "--budget", "20"), "'20' is not a budget; write a time such as 20m"),
        (("toy", "--nfe", 5, "--budget", "evals=9"), "too small for one candidate, which takes"),
        (("toy", "--nfe", 5, "--noises", "9,9"), "write --noises TRAIN,VALIDATION,TEST"),
        (("toy", "--nfe", 5, "--noises", "9,0,9"), "each block needs at least one noise"),
        (("toy", "--nfe", 5, "--free", "time"), "no decision 'time'; did you mean 'times'?"),
        (("toy", "--nfe", 5, "--afs", "one"), "no analytic first step 'one'"),
        (("toy", "--nfe", 5, "--base", "heun"), "heun cannot be the base"),
        (("toy", "--nfe", 5, "--base", "unipc"), "no solver 'unipc'; did you mean 'unipc-"),
        (("toy", "--nfe", 5, "--grid", "kerras"), "did you mean 'karras'?"),
        (("toy", "--nfe", 5, "--scored", 0), "at least 1 noise, not 0"),
        (("toy", "--nfe", 5, "--cfg-scale", 2), "toy brings its own network"),
        (("toy", "--nfe", 5, "--out", "no/such/a.json"), "does not exist; create it first"),
        (("toy", "--nfe", 5, "--plot", "a.png"), "must end in .svg"),
        (("toy", "--nfe", 5, "--reference", "x"), "toy brings its own"),
        (("fashion-dot", "--nfe", 5), "fashion-dot"),
        (("fashion-dit", "--nfe", 5, *SEEDS), "the blocks train and validation share seed 3"),
        (("fashion-dit", "--nfe", 5, "--classes", "11"), "class 11 does not exist"),
        (("fashion-dit", "--nfe", 5, "--teacher", "unipc-9"), "no solver 'unipc-9'"),
        (("fashion-dit", "--nfe", 5, "--final", "end"), "no end rule 'end'"),
        (("fashion-dit", "--nfe", 5, "--reference-end", 2), "end=2 must lie below the start"),
        (("toy", "--nfe", 5, "--reference-end", 0.05), "toy brings its own"),
        (("fashion-dit", "--nfe", 5, "--objective", "fid", "--weights", "w.pth"), "w.pth"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(tmp_path, words, message):
    assert message in refused(*words)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_line_of_the_log_is_named_and_kept(tmp_path):
    search("toy", "--nfe", 4, *QUICK, "--quiet")
    path = tmp_path / "schedule.search" / "worker-0.jsonl"
    body = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*body[:5], b'{"half": true}\n', *body[6:]]))
    assert "line 6 of" in refused("toy", "--nfe", 4, *QUICK)
    assert path.read_bytes().splitlines(keepends=True)[6:] == body[6:]
    path.write_bytes(b"".join([*body[:5], *body[6:]]))
    search("toy", "--nfe", 4, *QUICK, "--quiet")
    assert lines(tmp_path / "schedule.search") == 70


def test_a_log_of_another_search_is_refused():
    search("toy", "--nfe", 4, *QUICK, "--quiet")
    other = refused("toy", "--nfe", 4, *QUICK, "--objective", "log_mse")
    assert "its objective is 'terminal', not 'log_mse'; give another --log" in other


def test_the_log_folder_may_not_be_a_file(tmp_path):
    (tmp_path / "schedule.search").write_text("")
    assert "is a file" in refused("toy", "--nfe", 4, *QUICK)
