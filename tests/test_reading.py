"""Files that a user names: ordinary ones are read, everything else is refused in one line."""

import os

import pytest
import torch
from safetensors.torch import save

from fewstep.models.errors import SettingError
from fewstep.models.reading import (
    ordinary_file,
    parse_json,
    read_bytes,
    read_object,
    read_tensors,
    read_text,
)
from fewstep.models.schedule import EDM
from fewstep.samplers.images import open_picture
from fewstep.samplers.inversion import Inversion
from fewstep.solvers.model_statistics import ModelStatistics

OF_TENSORS = (read_tensors, ModelStatistics.load, lambda path: Inversion.load(path, EDM()))


def test_an_ordinary_file_is_read_through_links(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, 2.5]}')
    (tmp_path / "link").symlink_to("a.json")
    assert ordinary_file(tmp_path / "link") == tmp_path / "link"
    assert read_object(tmp_path / "link") == {"a": [1, 2.5]}
    assert read_bytes(tmp_path / "a.json", largest=15) == b'{"a": [1, 2.5]}'


def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    cases = {
        "pipe": "is a pipe",
        "/dev/zero": "is a pipe, a device",
        ".": "is a folder",
        "loop": "Too many levels of symbolic links",
        "dangling": "no such file",
        "a" * 300: "File name too long",
        "a\0b": "null",
    }
    for name, text in cases.items():
        for read in (
            ordinary_file,
            read_bytes,
            read_object,
            read_tensors,
            open_picture,
            *OF_TENSORS,
        ):
            with pytest.raises(SettingError, match=text):
                read(tmp_path / name)


def test_contents_that_are_refused(tmp_path):
    path = tmp_path / "x.json"
    cases = {
        b'{"a": 1, "b": {"c": 1, "c": 1}}': "the key 'c' twice",
        b"[" * 100_000: "nests too deeply",
        b"[1]": "must hold a JSON object",
        b"\xff\xfe": "not UTF-8 text",
        b"{": "Invalid JSON: Expecting",
        b"": "Invalid JSON: Expecting value",
        b'{"a": 1' + b"0" * 5000 + b"}": "Invalid JSON",
    }
    for body, text in cases.items():
        path.write_bytes(body)
        with pytest.raises(SettingError, match=text):
            read_object(path)
    with pytest.raises(SettingError, match="more than 3 bytes"):
        read_text(path, largest=3)


def test_json_is_what_python_makes_of_it():
    assert parse_json('{"a": [1, 2.5, null, "x"], "b": {"a": 1}}') == {
        "a": [1, 2.5, None, "x"],
        "b": {"a": 1},
    }


def test_a_picture_that_would_unfold_to_a_billion_pixels(tmp_path, monkeypatch):
    from PIL import Image

    Image.new("1", (300, 300)).save(tmp_path / "big.png")
    assert open_picture(tmp_path / "big.png").size == (300, 300)
    for most in (40_000, 50_000):  # beyond twice of it Pillow raises, below it warns
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(SettingError, match="not a readable picture: Image size"):
            open_picture(tmp_path / "big.png")


def test_tensors_are_read_from_safetensors_alone(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"x": torch.arange(3)}, {"of": "numbers"}))
    tensors, metadata = read_tensors(path)
    assert (tensors["x"].tolist(), metadata) == ([0, 1, 2], {"of": "numbers"})
    path.write_bytes(b"{")
    for read in OF_TENSORS:
        with pytest.raises(SettingError, match=r"x\.safetensors"):
            read(path)
