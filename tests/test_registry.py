"""One behaviour of every registry: names, settings and their errors, also from constructors."""

import sys
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest

from fewstep.eval.metrics.base import METRICS
from fewstep.eval.search.strategies import STRATEGIES
from fewstep.models.caching.base import CACHES
from fewstep.models.errors import SettingError, UnknownNameError
from fewstep.models.registry import Registry, SettingsRegistry, is_needed, parse_spec, settings_of
from fewstep.samplers.editing.base import EDITORS
from fewstep.samplers.guidance.base import GUIDANCES
from fewstep.solvers.base import SOLVERS

OF_SETTINGS = {
    "solver": SOLVERS,
    "cache": CACHES,
    "guidance": GUIDANCES,
    "editor": EDITORS,
}
ALL = {**OF_SETTINGS, "metric": METRICS, "strategy": STRATEGIES}
BAD = {  # a setting out of range, and what the error begins with
    ("solver", "unipc-2", "solver_type", "bh3"): "unipc-2: solver_type='bh3': ",
    ("solver", "heun", "s_churn", -1.0): "heun: s_churn=-1.0: ",
    ("cache", "cg-taylor", "lead", "x"): "cg-taylor: lead='x': ",
    ("cache", "taylorseer", "interval", "x"): "taylorseer: interval='x': ",
    ("guidance", "cfg", "scale", "much"): "cfg: scale='much': ",
    ("editor", "rf-edit", "steps", 0): "rf-edit: steps=0: ",
}

SPECS = {
    "solver": "dpmpp-2m:kind=taylor",
    "cache": "taylorseer:interval=7",
    "guidance": "apg:eta=0.5,scale=2",
    "editor": "rf-edit:inject=7",
}


def test_an_unknown_name_tells_the_known_ones():
    for noun, registry in ALL.items():
        assert registry.noun == noun
        for name in ("nope", "", None, 3):
            with pytest.raises(
                UnknownNameError, match=f"no {noun} {name!r}; .*{next(iter(registry))}"
            ):
                registry.get(name)


MORE = """
from dataclasses import dataclass
from shelf import REGISTRY

@REGISTRY.register
@dataclass(frozen=True)
class Third:
    name = "third"
    size: int = 3
"""


def test_other_packages_register_more_by_an_entry_point(tmp_path, monkeypatch):
    """Their modules are imported where a name is not known, and not before."""
    metadata = tmp_path / "more-1.dist-info"
    metadata.mkdir()
    (metadata / "entry_points.txt").write_text("[test.shelf]\nmore = more\n")
    (tmp_path / "more.py").write_text(MORE)
    monkeypatch.syspath_prepend(tmp_path)
    registry = SettingsRegistry("thing", object, group="test.shelf")
    monkeypatch.setitem(sys.modules, "shelf", SimpleNamespace(REGISTRY=registry))
    assert "more" not in sys.modules
    assert registry.make("third:size=4").size == 4
    assert registry.names() == ["third"]
    with pytest.raises(UnknownNameError, match="no thing 'fourth'"):
        registry.get("fourth")
    (tmp_path / "more.py").write_text("import absent_package")
    monkeypatch.delitem(sys.modules, "more")
    broken = SettingsRegistry("thing", object, group="test.shelf")
    with pytest.raises(SettingError, match=r"more = more cannot be imported: No module named"):
        broken.names()


def test_a_name_is_taken_once():
    for noun, registry in ALL.items():
        taken = registry.names()[0]
        with pytest.raises(ValueError, match=f"two {noun}s are named '{taken}'"):
            registry.add(taken, object())


def test_constructors_and_the_registry_raise_the_same_errors():
    for (noun, name, key, value), message in BAD.items():
        registry = OF_SETTINGS[noun]
        for make in (registry.get(name), partial(registry.make, name)):
            with pytest.raises(SettingError) as caught:
                make(**{key: value})
            assert str(caught.value).startswith(message)
            assert "\n" not in str(caught.value)


NEEDED = {"inner": "cfg:scale=2", "low": 0.1, "high": 0.9, "network": "x", "compute": (0, 2)}


def test_every_setting_is_held_to_its_type_by_constructors_and_the_registry_alike():
    tried = 0
    for registry in OF_SETTINGS.values():
        for name in registry:
            cls = registry.get(name)
            if name == "linear-ag":  # its file is read first
                continue
            given = {f.name: NEEDED.get(f.name, 2.0) for f in settings_of(cls) if is_needed(f)}
            for key in (each.name for each in settings_of(cls)):
                said, wrong = [], {**given, key: object()}
                for make in (cls, partial(registry.make, name)):
                    with pytest.raises(SettingError) as caught:
                        make(**wrong)
                    said.append(str(caught.value))
                assert said[0] == said[1]
                assert key.rstrip("_") in said[0]
                assert "\n" not in said[0]
                tried += 1
    assert tried > 100


def test_a_name_takes_its_settings_with_it():
    for noun, spec in SPECS.items():
        registry = OF_SETTINGS[noun]
        name, settings = parse_spec(spec)
        made = registry.make(name, **settings)
        assert made != registry.make(name, **{"scale": 2} if noun == "guidance" else {})
        assert registry.make(spec) == registry.take(spec) == registry.take(made) == made
        with pytest.raises(SettingError, match=f"{min(settings)} is given twice"):
            registry.make(spec, **{min(settings): 1})
        with pytest.raises(SettingError, match=f"{min(settings)} is given twice"):
            registry.make(f"{spec},{min(settings)} =1")


def test_every_settings_class_names_an_unknown_setting_one_too_many_and_one_that_is_missing():
    for registry in OF_SETTINGS.values():
        for name in registry:
            cls = registry.get(name)
            with pytest.raises((UnknownNameError, SettingError), match="'nonsense'"):
                cls(nonsense=1)
            many = [None] * (len(settings_of(cls)) + 1)
            with pytest.raises(SettingError, match=f"{name} has {len(many) - 1} settings"):
                cls(*many)
            if needed := [each.name.rstrip("_") for each in settings_of(cls) if is_needed(each)]:
                with pytest.raises(SettingError, match=f"{name} needs {sorted(needed)[0]}"):
                    cls()


def test_a_class_is_found_by_its_info_or_its_name_and_can_be_extended():
    registry = SettingsRegistry("thing", object)

    @registry.register
    @dataclass(frozen=True)
    class First:
        name: ClassVar[str] = "first"
        in_: int = 1

    @registry.register
    @dataclass(frozen=True)
    class Second(First):
        name: ClassVar[str] = "second"
        more: int = 2

    assert registry.names() == ["first", "second"]
    assert registry.make("second", **{"in": 5, "more": 6}) == Second(in_=5, more=6)
    with pytest.raises(UnknownNameError, match="no setting of first 'more'; known: in"):
        First(more=1)


def test_plain_values():
    registry = Registry("number")
    registry.add("one", 1)
    assert registry.get("one") == 1
    assert list(registry) == ["one"]
