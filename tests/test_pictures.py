"""Pictures: tensors to pixels, sheets, files, and the run inside a PNG."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewstep.models.arguments import format_ranges, parse_ranges
from fewstep.models.errors import ModelError, SettingError
from fewstep.models.files import write_whole
from fewstep.samplers.images import make_contact_sheet, to_pil, to_uint8
from fewstep.samplers.preview import preview
from fewstep.samplers.run_record import Run, read_run, save_png


def test_pixels_are_rounded_and_clipped():
    x = torch.tensor([-2.0, -1.0, -0.9961, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 6)
    assert to_uint8(x).flatten().tolist() == [0, 0, 0, 128, 255, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_modes(channels, mode):
    assert to_pil(torch.zeros(2, channels, 4, 5))[0].mode == mode
    assert to_pil(torch.zeros(2, channels, 4, 5))[0].size == (5, 4)


def test_latents_are_no_pictures():
    with pytest.raises(ModelError, match="VAE"):
        to_pil(torch.zeros(1, 16, 4, 4))


def test_sheet_places_pictures_row_by_row():
    cells = [Image.new("L", (3, 2), color=10 * i) for i in range(5)]
    sheet = make_contact_sheet(cells, columns=2, padding=1)
    assert sheet.size == (2 * 4 + 1, 3 * 3 + 1)
    corners = [(1, 1), (5, 1), (1, 4), (5, 4), (1, 7), (5, 7)]
    assert [sheet.getpixel(at) for at in corners] == [0, 10, 20, 30, 40, 255]
    assert sheet.getpixel((0, 0)) == 255


def test_a_preview_has_two_pixels_in_a_character():
    picture = Image.new("RGB", (3, 4), "black")
    picture.putpixel((1, 2), (255, 0, 0))
    picture.putpixel((1, 3), (0, 0, 255))
    segments = [each for each in preview(picture, 80).segments if each.text != "\n"]
    assert len(segments) == 3 * 2
    colours = [(each.style.color.triplet, each.style.bgcolor.triplet) for each in segments]
    assert colours[4] == ((255, 0, 0), (0, 0, 255))
    assert set(colours[:4] + colours[5:]) == {((0, 0, 0), (0, 0, 0))}
    narrow = preview(Image.new("L", (300, 200)), 60).segments
    assert [each.text for each in narrow].count("\n") == 20


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(SettingError, match="No space left"):
        write_whole(path, fail)
    monkeypatch.setattr("os.replace", lambda source, target: fail(io.BytesIO()))
    with pytest.raises(SettingError, match="No space left"):
        write_whole(path, lambda file: file.write(b"whole"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_run_survives_its_picture(tmp_path):
    run = Run(model="m", seeds=(3, 4), classes=(1, 2), cfg_scale=2.0, cfg_interval=(0.1, 5.0))
    save_png(Image.new("L", (2, 2)), tmp_path / "a.png", run, 4)
    assert read_run(tmp_path / "a.png") == run
    assert run.select_image(1).seeds == (4,)
    assert run.select_image(1).classes == (2,)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_ranges_round_trip(numbers):
    assert parse_ranges(format_ranges(tuple(numbers))) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-", "3-1", "1,,2", "0-9999999"])
def test_bad_ranges(text):
    with pytest.raises(SettingError):
        parse_ranges(text)
