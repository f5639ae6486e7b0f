"""What commands write: refused before any work where something would be lost, and shared stores."""

import json
import multiprocessing
import time

import pytest
from PIL import Image
from test_protocol import protocol
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.bench.rows import ResultRow, ResultStore
from fewstep.eval.bench.store import KeyedRow, RowStore
from fewstep.models.errors import SettingError

THESIS = b"Chapter 1\nThe last line, without an end"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of a user's files, in which no network can be loaded."""
    monkeypatch.chdir(tmp_path)
    Image.new("L", (32, 32)).save("pic.png")
    (tmp_path / "link.png").symlink_to("pic.png")
    (tmp_path / "thesis.txt").write_bytes(THESIS)
    (tmp_path / "s.safetensors.partial").mkdir()
    (tmp_path / "s.safetensors.partial" / "00000.safetensors").write_bytes(THESIS)
    (tmp_path / "curves.json").write_text("{}")
    return tmp_path


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


REFUSED = {
    "sample --out x.jpg": "must end in .png",
    "sample --out grid": "must end in .png",
    "sample --out -": "is not a file",
    "sample --from-png pic.png --out pic.png": "is read",
    "sample --from-png pic.png --out link.png": "is read",
    "invert pic.png --out pic.png": "must end in .safetensors",
    "invert pic.png --strip link.png": "is read",
    "invert pic.png --strip x.jpg": "must end in .png",
    "edit pic.png --to-class 1 --out pic.png": "is read",
    "edit pic.png --to-class 1 --out a.png --strip ./a.png": "written twice",
    "stats fashion-dit --out s": "must end in .safetensors",
    "stats fashion-dit --out s.safetensors": "no measurement has made it",
    "search toy --nfe 5 --out x.txt": "must end in .json",
    "search toy --nfe 5 --log log --out log/search.json": "a file of the search itself",
    "search toy --nfe 5 --log log --out log/reference.json": "a file of the search itself",
    "search toy --nfe 5 --out thesis.txt/x.json": "is a file",
    "calibrate fashion-dit --out x.txt": "must end in .json",
    "calibrate fashion-dit --out curves.json --plot curves.txt": "must end in .png, .svg, .pdf",
    "fit linear-ag fashion-dit --cfg-scale 2 --out x.txt": "must end in .json",
    "bench edit --strip x.jpg": "must end in .png",
    "bench fid-nfe --store thesis.txt": "is not a store of these figures",
    "bench fid-nfe --store curves.json": "is not a store of these figures",
    "bench fid-nfe --store a.png --plot a.png": "which is read",
    "bench fid-nfe --html thesis.txt": "must end in .html",
    "bench guidance --store thesis.txt": "is not a store of these figures",
    "bench cache --store pic.png": "is not a store of these figures",
    "bench inversion --store thesis.txt": "is not a store of these figures",
    "bench inversion --store -": "is not a file",
    "bench rivals fashion-dit --store thesis.txt": "is not a store of these figures",
    "bench speed --store thesis.txt": "is not a store of these figures",
    "bench scaling --store thesis.txt": "is not a store of these figures",
    "bench scaling --plot a.gif": "must end in .png",
    "bench gpu --device cpu --tiny --store thesis.txt": "is not a store of these figures",
    f"bench gpu --device cpu --tiny --store {'x' * 250}": "too long",
    "bench table thesis.txt": "is not a store of these figures",
}


def test_nothing_of_a_user_is_lost(place, monkeypatch):
    """And nothing is computed first: no network is loaded, no folder made."""
    (place / "log").mkdir()
    for module in (
        "models.load",
        "eval.search.prepare",
        "eval.experiments.fid_nfe",
        "eval.bench.front",
    ):
        monkeypatch.setattr(f"fewstep.{module}.load", None)
    before = contents(place)
    for words, reason in REFUSED.items():
        done = CliRunner().invoke(app, words.split())
        assert done.exit_code == 2, (words, done.output, done.exception)
        assert reason in done.output, (words, done.output)
        assert len(done.output.strip().splitlines()) == 1
        assert contents(place) == before, words
    assert not (place / "x.search").exists()


def test_single_pictures_are_not_written_over_the_grid_or_the_source(place, monkeypatch):
    """Known once the seeds and the classes are, and refused before an image is drawn."""
    monkeypatch.setattr("fewstep.samplers.run_record.Run.arguments", None)
    words = ["sample", "fashion-dit", "--nfe", "2", "--seeds", "3", "--save-images", "."]
    twice = CliRunner().invoke(app, [*words, "--out", "000003-0.png"])
    assert twice.exit_code == 2
    assert "written twice" in twice.output
    (place / "000003-0.png").write_bytes(b"kept")
    (place / "000003-0.png").chmod(0o444)
    denied = CliRunner().invoke(app, [*words, "--out", "grid.png"])
    assert denied.exit_code == 2
    assert "read-only" in denied.output
    assert (place / "000003-0.png").read_bytes() == b"kept"


# Stores


class Count(KeyedRow):
    """A piece of work that is done, and who did it."""

    number: int
    process: int

    @property
    def key(self):
        return str(self.number)


def test_a_store_of_another_kind_is_refused_and_half_a_first_row_is_not(tmp_path):
    path = tmp_path / "results.jsonl"
    RowStore(path, Count).append(Count(number=1, process=0))
    with pytest.raises(SettingError, match="is not a store of these figures"):
        ResultStore(path)
    row = ResultRow.now(protocol(nfe=4), 1.5)
    half = row.line[:200].encode()
    path.write_bytes(half)
    store = ResultStore(path)
    assert store.rows == {}
    store.append(row)
    assert list(ResultStore(path).rows.values()) == [row]
    assert path.with_name("results.jsonl.broken").read_bytes() == half + b"\n"


def test_a_store_under_two_names_has_one_lock(tmp_path):
    path, link = tmp_path / "results.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(path)
    mine, theirs = RowStore(path, Count), RowStore(link, Count)
    for number, store in enumerate((mine, theirs)):
        store.append(Count(number=number, process=0))
    assert RowStore(path, Count).rows.keys() == {"0", "1"}
    turns = mine.turns([1], str, lambda work: False)
    assert next(turns) == 1
    assert next(theirs.turns([1, 2], str, lambda work: False)) == 2


def work(path, process, numbers):
    store = RowStore(path, Count)
    for number in store.turns(numbers, str, lambda number: str(number) in store.rows):
        time.sleep(0.02)
        store.append(Count(number=number, process=process))
    assert store.rows.keys() >= {str(number) for number in numbers}


def test_three_processes_do_each_piece_of_work_once_and_see_all(tmp_path):
    path = tmp_path / "results.jsonl"
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=work, args=(path, i, list(range(12)))) for i in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["number"] for row in rows) == list(range(12))
    assert len({row["process"] for row in rows}) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_the_work_of_a_killed_process_is_done_by_another_and_no_lock_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.models.files.LEASE", 0.5)
    path = tmp_path / "results.jsonl"

    def held(numbers):
        store = RowStore(path, Count)
        for _ in store.turns(numbers, str, lambda number: str(number) in store.rows):
            time.sleep(60.0)

    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=held, args=([5],))
    child.start()
    parts = path.with_name("results.jsonl.parts")
    while not parts.exists() or not list(parts.iterdir()):
        time.sleep(0.01)
    child.kill()
    child.join()
    path.with_name("results.jsonl.lock").touch()  # as if killed before it wrote its name
    work(path, 1, [4, 5])
    assert RowStore(path, Count).rows.keys() == {"4", "5"}
    assert list(tmp_path.iterdir()) == [path]
