"""Guidance from a text: a name, its settings, and what goes around it."""

import re

from ...models.errors import SettingError, UnknownNameError
from ...models.registry import is_needed, parse_spec, settings_of
from .base import Guidance, Unguided
from .registry import guidance, names, policy_class


def take_guidance(given: Guidance | str | None) -> Guidance:
    """Returns a policy given as such or as `parse_guidance` takes it; None is no guidance.

    Raises:
        FewstepError: as `parse_guidance`, and for anything else.
    """
    if isinstance(given, str):
        return parse_guidance(given)
    if given is None:
        return Unguided()
    if not isinstance(given, Guidance):
        raise SettingError(
            f"guidance={given!r} is no guidance policy; give a text, as in 'cfg:scale=2', or a"
            " policy of fewstep.samplers.guidance, such as CFG(2.0)"
        )
    return given


def parse_guidance(spec: str, scale: float | None = None) -> Guidance:
    """Returns the guidance of `name:key=value,...`, narrowed by what follows a plus.

    `cfg:scale=3+interval:low=0.3,high=5` is `Interval(CFG(3.0), 0.3, 5.0)`.

    scale: taken where the first policy is given none, and otherwise the same; a wrapper that comes
        first wraps `CFG` of this scale, or without one what it wraps by default.

    Raises:
        FewstepError: for names, settings and combinations that cannot be.
    """
    outer = "|".join(_list_wrappers())
    first, *wrappers = re.split(rf"\+(?=[a-z-]+:|(?:{outer})(?:\+|$))", spec)
    name = parse_spec(first)[0]
    if name in _list_wrappers() and scale is not None:
        first, wrappers, scale = f"cfg:scale={scale!r}", [first, *wrappers], None
    elif name in _list_wrappers(needy=True):
        raise SettingError(f"{spec!r} wraps another guidance; write cfg:scale=2+{spec}")
    name, settings = parse_spec(first)
    if scale is not None and settings.setdefault("scale", scale) != scale:
        raise SettingError(
            f"the guidance {first} and the guidance scale {scale:g} do not agree; drop one of them"
        )
    found = guidance(name, **settings)
    for each in wrappers:
        name, settings = parse_spec(each)
        if name not in _list_wrappers():
            raise UnknownNameError("guidance that goes around another", name, _list_wrappers())
        found = guidance(name, inner=found, **settings)
    return found


def _list_wrappers(*, needy: bool = False) -> list[str]:
    """Returns the names of guidance that has another one inside; of those that must be given it."""
    every = [(name, each) for name in names() for each in settings_of(policy_class(name))]
    inner = [(name, each) for name, each in every if each.name == "inner"]
    return [name for name, each in inner if not needy or is_needed(each)]
