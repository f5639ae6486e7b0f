"""The writer: what it replaces and refuses, what a killed one leaves, that it is the only one."""

import ast
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from fewstep.models.errors import SettingError
from fewstep.models.files import (
    check_apart,
    check_folder,
    check_writable,
    claim,
    clear_locks,
    hold_file,
    make_folder,
    remove_file,
    write_bytes,
    write_whole,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def there(tmp_path):
    path = tmp_path / "there.png"
    path.write_bytes(b"old")
    return path


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_keeps_its_permissions(there):
    there.chmod(0o640)
    write_bytes(there, b"new")
    assert there.read_bytes() == b"new"
    assert stat.S_IMODE(there.stat().st_mode) == 0o640
    assert listed(there.parent) == ["there.png"]
    mask = os.umask(0o027)
    try:
        write_bytes(there.with_name("made.png"), b"made")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(there.with_name("made.png").stat().st_mode) == 0o640


def test_links_are_followed_to_the_file_that_they_name(there):
    folder = there.parent / "elsewhere"
    folder.mkdir()
    for target, name in ((there, "link"), (folder / "not-yet.png", "dangling")):
        link = folder / name
        link.symlink_to(target)
        check_writable(link)
        write_bytes(link, name.encode())
        assert link.is_symlink()
        assert target.read_bytes() == name.encode()
    assert listed(folder) == ["dangling", "link", "not-yet.png"]


def kinds(folder):
    """Returns paths that are not files to be replaced: a name each, and a word of the reason."""
    os.mkfifo(folder / "fifo.png")
    (folder / "folder.png").mkdir()
    (folder / "read-only.png").write_bytes(b"kept")
    (folder / "read-only.png").chmod(0o444)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "device.png").symlink_to(os.devnull)
    return {
        "fifo.png": "a pipe",
        "folder.png": "is a folder",
        "read-only.png": "read-only",
        "loop.png": "symbolic links",
        "device.png": "a device",
        "x" * 252 + ".png": "too long",
        "none/x.png": "does not exist; create it first",
        "read-only.png/x.png": "directory",
    }


def test_what_is_no_regular_file_is_refused_and_stays(tmp_path):
    """Also to root, who could write anywhere."""
    for name, reason in kinds(tmp_path).items():
        before = listed(tmp_path)
        for refuse in (check_writable, lambda path: write_bytes(path, b"new")):
            with pytest.raises(SettingError, match=reason):
                refuse(tmp_path / name)
            assert listed(tmp_path) == before
    assert (tmp_path / "read-only.png").read_bytes() == b"kept"
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    with pytest.raises(SettingError, match="is not a file"):
        check_writable(Path("-"))
    for name in ("read-only.png/x", "loop.png/x", "x" * 256):
        for refuse in (check_folder, make_folder):
            with pytest.raises(SettingError, match="cannot create folder"):
                refuse(tmp_path / name)


def test_the_kind_of_file_follows_its_name(tmp_path):
    check_writable(tmp_path / "x.PNG", ".png", ".svg")
    for name in ("x.jpg", "x", ".png"):
        with pytest.raises(SettingError, match=r"must end in \.png, \.svg"):
            check_writable(tmp_path / name, ".png", ".svg")


def test_one_file_under_two_names_is_written_once_and_not_over_what_is_read(there):
    folder = there.parent
    link, hard, dots = (folder / name for name in ("link.png", "hard.png", "d/../there.png"))
    link.symlink_to(there)
    hard.hardlink_to(there)
    (folder / "d").mkdir()
    for other in (there, link, hard, dots):
        with pytest.raises(SettingError, match="is read"):
            check_apart([None, other], [there, None])
        with pytest.raises(SettingError, match="written twice"):
            check_apart([there, other])
    check_apart([there, None, there.with_name("other.png")], [there.with_name("third.png"), None])
    new = there.with_name("new.png")
    new.symlink_to(there.with_name("not-yet.png"))
    with pytest.raises(SettingError, match="written twice"):
        check_apart([new, there.with_name("not-yet.png")])


WRITER = """
import os, sys
from pathlib import Path
from unittest.mock import Mock
from fewstep.models.files import write_whole
def write(file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    os.read(0, 1)
    file.write(b" and whole")
write_whole(Path(sys.argv[1]), write)
"""


def writing(path):
    """A process in the middle of writing a file."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], **pipes)
    assert child.stdout.readline() == b"writing\n"
    return child


@pytest.mark.parametrize("tidy", [lambda path: write_bytes(path, b"new"), remove_file])
def test_what_a_killed_writer_left_is_gone_after_the_next_write(tmp_path, tidy):
    """Also of a name so long that no hidden one could hold it, and only of that file."""
    path, other = tmp_path / ("x" * 255), tmp_path / "other"
    for each in (path, other):
        child = writing(each)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    left = set(listed(tmp_path))
    assert all(name.startswith(".") for name in left)
    tidy(path)
    gone = left - set(listed(tmp_path))
    assert len(gone) == len(left) / 2
    write_bytes(other, b"other")
    assert {".", *listed(tmp_path)} >= {"other"}
    assert all(not name.startswith(".") for name in listed(tmp_path))


def test_two_writers_of_one_file_take_turns(tmp_path):
    path = tmp_path / "x"
    child, done = writing(path), []
    second = threading.Thread(target=lambda: done.append(write_bytes(path, b"second")))
    second.start()
    time.sleep(0.2)
    assert not done
    child.communicate(b"x")
    second.join()
    assert path.read_bytes() == b"second"
    assert listed(tmp_path) == ["x"]


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(file):
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "x", fail)
    assert listed(tmp_path) == []


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path):
    path = tmp_path / "lock"
    with hold_file(path) as mine, hold_file(path, wait=False) as too:
        assert mine
        assert not too
    assert listed(tmp_path) == []


def test_locks_hold_where_those_of_the_system_do_nothing(tmp_path, monkeypatch):
    """As on network filesystems that take `flock` and do not pass it on."""
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    with hold_file(tmp_path / "lock") as mine, hold_file(tmp_path / "lock", wait=False) as too:
        assert mine
        assert not too


HOLDS = """
import sys, time
import filelock._identity, filelock._soft._records
from fewstep.models import files

name, files.LEASE = sys.argv[2], 0.5
for module in [each for each in sys.modules.values() if hasattr(each, "host_name")]:
    module.host_name = lambda: name or __import__("socket").gethostname()
with files.hold_file(files.Path(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("host", "seconds"), [("", 0.0), ("another-machine", 0.5)])
def test_what_a_dead_process_has_held_is_free_again(tmp_path, monkeypatch, host, seconds):
    """At once on this machine; that of another one after it was not renewed for some time."""
    monkeypatch.setattr("fewstep.models.files.LEASE", 0.5)
    path = tmp_path / "lock"
    child = subprocess.Popen([sys.executable, "-c", HOLDS, path, host], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"holding\n"
    with hold_file(path, wait=False) as mine:
        assert not mine
    time.sleep(0.8)  # longer than it may be left unchanged: it is renewed
    with hold_file(path, wait=False) as mine:
        assert not mine
    child.send_signal(signal.SIGKILL)
    child.communicate()
    os.utime(path, (0, 0))  # clocks do not matter
    with hold_file(path, wait=False) as mine:
        assert mine == (seconds == 0.0)
    time.sleep(seconds)
    with hold_file(path, wait=False) as mine:
        assert mine


TAKES = """
import os, sys
from fewstep.models import files

files.WholeLease._write_lock_info = lambda *_: os.kill(os.getpid(), 9)
with files.hold_file(files.Path(sys.argv[1])):
    pass
"""


def test_a_process_that_is_killed_while_it_takes_a_lock_holds_nothing(tmp_path):
    path = tmp_path / "work.claim"
    assert subprocess.run([sys.executable, "-c", TAKES, path]).returncode == -signal.SIGKILL
    with hold_file(path, wait=False) as mine:
        assert mine
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))  # an hour later
    assert list(clear_locks(tmp_path, "*.claim")) == [left]
    assert listed(tmp_path) == []


def test_locks_hold_where_files_cannot_be_linked(tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", Mock(side_effect=PermissionError))
    with hold_file(tmp_path / "lock") as mine, hold_file(tmp_path / "lock", wait=False) as too:
        assert mine
        assert not too
    assert listed(tmp_path) == []


def test_work_is_claimed_by_one_until_it_is_done(tmp_path):
    done = []
    path = tmp_path / "made" / "work"
    with claim(path, lambda: False) as mine, claim(path, lambda: False) as too:
        assert mine
        assert not too
    with claim(path, lambda: bool(done)) as mine:
        assert mine
        done.append(1)
    with claim(path, lambda: bool(done), wait=True) as mine:
        assert not mine
    assert listed(path.parent) == []


# What the package may write with beside the writer, and where.
ALLOWED = {
    "eval/data/download.py": {"open", "replace"},  # one that is broken off is gone on with
    "eval/line_file.py": {"open"},
    "models/files.py": {"mkdir"},
    "recipes/training/loop.py": {"open"},
}
FILES = ("write_text", "write_bytes", "rename", "symlink_to", "save_file", "mkdir")


def written(path):
    """The calls in a source file that write to disk by themselves."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        attribute = isinstance(node.func, ast.Attribute)
        name = node.func.attr if attribute else node.func.id
        modes = [str(each.value) for each in node.args if isinstance(each, ast.Constant)]
        if name == "open" and any(set(mode) & set("wax+") for mode in modes if len(mode) < 4):
            yield name
        if attribute and (name in FILES or ast.unparse(node.func) == "os.replace"):
            yield name


def test_there_is_one_writer():
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(("tests/", "build/", ".", "models/files.py")):
            continue
        assert set(written(path)) <= ALLOWED.get(name, set()), name


def test_locks_need_no_unix():
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import fewstep.eval.bench.rows, fewstep.eval.search.log\n"
        "import fewstep.eval.experiments.inversion"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
