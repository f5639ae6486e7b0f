"""A protocol is data: what its JSON holds, what its hash depends on, and which rows may mix."""

import json

import pytest
from pydantic import ValidationError

from fewstep.eval.bench.protocol import (
    Drawn,
    Measure,
    Protocol,
    Real,
    check_alike,
)
from fewstep.models.errors import SettingError
from fewstep.models.schedule import VPDiscrete
from fewstep.samplers.grid import time_grid
from fewstep.samplers.run_record import Run
from fewstep.solvers import solver

MEASURE = Measure(
    metric="fd-small",
    extractor="fd-small",
    extractor_sha256="ab",
    resize="none",
    reference="fashion-mnist",
    reference_sha256="cd",
    n=20,
)


def run(**changes):
    choices = {"model": "m", "solver": "ddim", "grid": "beta", "nfe": 5, "seeds": tuple(range(20))}
    return Run(**{**choices, **changes})


def protocol(**changes):
    facts = {"weights": "ef", "labels": "seed modulo 10"}
    rival, measure = changes.pop("rival", None), changes.pop("measure", MEASURE)
    facts |= {name: changes.pop(name) for name in [*facts] if name in changes}
    return Protocol(images=Drawn(run=run(**changes), rival=rival, **facts), measure=measure)


def test_json_holds_seeds_as_ranges_and_comes_back_equal():
    text = protocol().model_dump_json(exclude_none=True)
    assert json.loads(text)["images"]["run"]["seeds"] == "0-19"
    assert Protocol.model_validate_json(text) == protocol()
    assert Protocol.model_validate_json(text).hash == protocol().hash


def test_hash_does_not_drift():
    """Rows stored by earlier versions are found by it."""
    found = protocol().hash
    assert found == "813f7d5e039c9a3951c32beb3da18988a60f62055a8009b9cb528ea3d3dc17ab"


@pytest.mark.parametrize(
    "change", [{"batch": 7}, {"device": "cuda"}, {"columns": 3}, {"version": "9.9"}], ids=str
)
def test_hash_ignores_what_does_not_decide_the_number(change):
    assert protocol(**change).hash == protocol().hash


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"solver": "euler"},
        {"grid": "karras"},
        {"nfe": 6},
        {"final": "denoise"},
        {"cfg_scale": 2.0},
        {"threshold": 0.99},
        {"dtype": "bf16"},
        {"seeds": tuple(range(20, 40))},
        {"weights": "00"},
        {"labels": "none"},
        {"rival": "unipc", "solver": None, "grid": None},
        *(
            {"measure": MEASURE.model_copy(update={name: "x"})}
            for name in (
                "metric",
                "extractor",
                "extractor_sha256",
                "resize",
                "reference",
                "reference_sha256",
                "quantisation",
            )
        ),
    ],
    ids=str,
)
def test_hash_depends_on_the_rest(change):
    assert protocol(**change).hash != protocol().hash


def test_hash_ignores_where_a_schedule_came_from():
    steps = solver("unipc-2").encode(time_grid("logsnr", VPDiscrete(), 5))
    schedules = [steps, steps.model_copy(update={"provenance": {"note": "found on a Tuesday"}})]
    a, b = (protocol(solver=None, grid=None, nfe=None, schedule=each).hash for each in schedules)
    assert a == b
    assert a != protocol().hash


def test_blocks_of_one_setting_differ_in_their_seeds_alone():
    other = protocol(seeds=tuple(range(20, 40)))
    assert other.hash != protocol().hash
    assert other.setting == protocol().setting
    assert protocol(nfe=6).setting != protocol().setting
    real = [Real(source="s", sha256="a", rows=rows) for rows in ("0-19", "20-39")]
    assert len({Protocol(images=each, measure=MEASURE).setting for each in real}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": (1,) * 20}, "drop run.classes"),
        ({"rival": "unipc"}, "brings its solver"),
        ({"seeds": (1, 2)}, "n is 20, but there are 2"),
        ({"labels": "all of them"}, "labels"),
    ],
)
def test_contradictions_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        protocol(**change)


def test_unknown_fields_and_versions_are_refused():
    body = protocol().model_dump(mode="json")
    for broken in ({**body, "cache": 1}, {**body, "version": 2}):
        with pytest.raises(ValidationError):
            Protocol.model_validate(broken)


@pytest.mark.parametrize("field", [*Measure.model_fields])
def test_unlike_measures_do_not_mix(field):
    other = MEASURE.model_copy(update={field: 21 if field == "n" else "other"})
    with pytest.raises(SettingError, match=f"unlike {field} .*(other|21)"):
        check_alike([MEASURE, MEASURE, other])
    assert check_alike([MEASURE, MEASURE]) == MEASURE


def test_labels_follow_seeds():
    images = protocol(seeds=tuple(range(20, 40))).images
    assert images.labels_of((20, 21, 39)) == (0, 1, 9)
    assert protocol(labels="none").images.labels_of((1, 2)) is None
