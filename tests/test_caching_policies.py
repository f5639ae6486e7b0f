"""Policies as values: which calls are full, what is refused, and the registry."""

import pytest

from fewstep.models.caching import (
    CGTaylor,
    DeepCache,
    FirstBlock,
    FixedMask,
    MagCache,
    TaylorSeer,
    TeaCache,
    cache,
    register,
)
from fewstep.models.caching.base import CallPosition
from fewstep.models.errors import FewstepError, SettingError, UnknownNameError


def full_calls(policy, calls):
    """The calls that an index alone makes full."""
    full, last = [], 0
    for index in range(calls):
        if index == 0 or policy.must(CallPosition(index, index - last, calls)):
            full.append(index)
            last = index
    return full


@pytest.mark.parametrize("calls", [1, 5, 10, 28, 50])
@pytest.mark.parametrize("interval", [1, 2, 4, 7, 60])
@pytest.mark.parametrize("first", [1, 2, 3, 12])
def test_taylorseer_runs_as_many_full_calls_as_its_closed_form(calls, interval, first):
    full = full_calls(TaylorSeer(interval=interval, first=first), calls)
    assert len(full) == (calls if first >= calls else first + (calls - first) // interval)
    after = [i for i in full if i >= first]
    assert after == list(range(first - 1 + interval, calls, interval))


def test_published_counts_of_full_calls():
    for interval, first, wanted in [(3, 2, 18), (4, 2, 14), (5, 2, 11), (6, 3, 10), (7, 3, 9)]:
        assert len(full_calls(TaylorSeer(interval=interval, first=first), 50)) == wanted
    assert full_calls(DeepCache(interval=3), 10) == [0, 3, 6, 9]
    assert full_calls(FixedMask(compute=(0, 2, 7)), 10) == [0, 2, 7]


def test_gated_policies_force_both_ends_and_long_runs_of_skips():
    policy = CGTaylor(warmup=3, final=2, max_consecutive=2)
    found = [
        policy.must(CallPosition(i, since, 10)) for i, since in [(2, 1), (3, 1), (5, 3), (8, 1)]
    ]
    assert found == [True, None, True, True]
    now = CallPosition(4, 1, 10)
    assert [CGTaylor(threshold=0.1).accepts([e], now) for e in (0.05, 0.1, float("nan"))] == [
        True,
        False,
        False,
    ]


def test_teacache_adds_up_rescaled_changes_and_never_a_negative_one():
    policy = TeaCache(threshold=0.3, coefficients=(2.0, -0.2))
    now = CallPosition(4, 1, 10)
    assert policy.accepts([0.2, 0.05], now)  # 0.2, and -0.1 held at 0
    assert not policy.accepts([0.2, 0.05, 0.15], now)  # + 0.1


def test_magcache_follows_its_ratios():
    """E = |1 - .9| + |1 - .81| = .29 after two skips."""
    policy = MagCache(ratios=(1.0,) * 2 + (0.9,) * 8, threshold=0.2, max_consecutive=9)
    assert full_calls(policy, 10) == [0, 1, 3, 5, 7, 9]
    assert full_calls(MagCache(ratios=(1.0,) * 10, threshold=0.2, max_consecutive=2), 10) == [
        0,
        1,
        4,
        7,
    ]


def test_magcache_takes_the_nearest_ratio_for_another_number_of_calls():
    policy = MagCache(ratios=(1.0, 1.0, 0.5), threshold=0.1, max_consecutive=9, retention=0.0)
    assert full_calls(policy, 7) == [0, 5, 6]  # these two are nearest to the third of three


BAD = [
    ("taylorseer", {"interval": 0}, "interval must be at least 1"),
    ("taylorseer", {"order": -1}, "order must be 0"),
    ("taylorseer", {"order": 5}, "order must be 0"),
    ("taylorseer", {"first": 0}, "first must be at least 1"),
    ("taylorseer", {"interval": 2.5}, "interval=2.5"),
    ("taylorseer", {"level": "block"}, "level='block'"),
    ("cg-taylor", {"threshold": -0.1}, "threshold of -0.1"),
    ("cg-taylor", {"threshold": float("nan")}, "threshold of nan"),
    ("cg-taylor", {"o1": 9}, "o1 must be"),
    ("cg-taylor", {"o2": -1}, "o2 must be"),
    ("cg-taylor", {"warmup": 0}, "warmup must be"),
    ("cg-taylor", {"reduce": "median"}, "reduce='median'"),
    ("cg-taylor", {"lead": 0}, "lead must be"),
    ("cg-taylor", {"stride": 0}, "stride must be"),
    ("first-block", {"tail": -1}, "tail must be"),
    ("first-block", {"max_consecutive": 0}, "max_consecutive must be"),
    ("teacache", {"reduce": "median"}, "reduce='median'"),
    ("teacache", {"coefficients": ()}, "coefficients must not be empty"),
    ("magcache", {"ratios": (1.0, 0.0)}, "ratios must be positive"),
    ("sencache", {"slopes": ((1.0, -1.0, 0.5),)}, "slopes must be J_x and J_t"),
    ("sencache", {"early": -1.0}, "a number above 0"),
    ("magcache", {"ratios": (1.0,), "retention": 1.0}, "retention lies"),
    ("deepcache", {"branch": -1}, "branch must be"),
    ("fixed-mask", {"compute": (1, 2)}, "rising call indices from 0"),
    ("fixed-mask", {"compute": (0, 5, 3)}, "rising call indices"),
    ("fixed-mask", {}, "compute"),
]


@pytest.mark.parametrize(("name", "settings", "text"), BAD)
def test_bad_settings_are_refused_in_one_line(name, settings, text):
    with pytest.raises(SettingError) as refused:
        cache(name, **settings)
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)


def test_constructors_refuse_as_the_registry_does():
    with pytest.raises(SettingError, match="interval must be at least 1"):
        TaylorSeer(interval=0)


SHORT = [
    (TaylorSeer(first=3), 3),
    (CGTaylor(warmup=3, final=1), 4),
    (FirstBlock(warmup=3, final=1), 4),
    (DeepCache(), 1),
    (FixedMask(compute=(0, 12)), 12),
    (MagCache(ratios=(1.0,), retention=0.9), 5),
]


@pytest.mark.parametrize(("policy", "calls"), SHORT)
def test_runs_too_short_to_skip_anything_are_refused(policy, calls):
    with pytest.raises(SettingError):
        policy.check(calls)
    policy.check(calls + 20)


def test_off_settings_say_so():
    for policy in (TaylorSeer(interval=1), CGTaylor(threshold=0.0), DeepCache(interval=1)):
        assert policy.off
        policy.check(1)
    assert not CGTaylor().off


def test_registry_suggests_the_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'taylorseer'"):
        cache("tailorseer")
    with pytest.raises(UnknownNameError, match="did you mean 'interval'"):
        cache("taylorseer", intervall=3)
    with pytest.raises(ValueError, match="two caches are named"):
        register(TaylorSeer)


def test_policies_are_values():
    assert TaylorSeer(interval=3) == cache("taylorseer", interval=3)
    assert len({CGTaylor(), CGTaylor(), CGTaylor(threshold=0.1)}) == 2
    with pytest.raises((AttributeError, FewstepError, ValueError)):
        TaylorSeer().interval = 2
