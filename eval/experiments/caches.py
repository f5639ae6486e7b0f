"""The caches that are compared: ours where none are named, and those of others.

    diffusers-taylorseer:cache_interval=3,max_order=1     TaylorSeerCacheConfig
    diffusers-first-block:threshold=0.1                    FirstBlockCacheConfig
    diffusers-pab:range=2,window=[0.2,0.9]                 PyramidAttentionBroadcastConfig
    cache-dit:residual_diff_threshold=0.1,taylor=1         DBCacheConfig, with a calibrator: taylor
                                                           and its order, foca=1 or dmd=1

Those of others run as they are meant to, with the settings of their own configuration. diffusers'
patterns of TaylorSeer end in "attn" and match nothing on DiT, so its modules are named explicitly.
cache-dit comes with the extra `rivals`. All take branches that are one batch as one context, as
ours does.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...models.architectures import architecture_of
from ...models.architectures.dit import DIT
from ...models.architectures.stack import describe
from ...models.denoiser import Network
from ...models.errors import FewstepError, SettingError
from ...models.extras import check_installed
from ...models.registry import parse_spec
from ...samplers.sampler import Result, Sampler

# What `fewstep bench cache` and `fewstep calibrate` try where no cache is named.
INTERVALS = (2, 3, 4, 5)

GATED = (
    *(
        f"cg-taylor:threshold={threshold},lead={lead}"
        for lead in (1, 2, 3)
        for threshold in (0.02, 0.05, 0.1, 0.2)
    ),
    *(
        f"first-block:threshold={threshold},lead={lead},order={order}"
        for lead in (1, 2)
        for order in (0, 1)
        for threshold in (0.05, 0.1, 0.2)
    ),
)
SUMMED = (
    *(f"easycache:threshold={threshold}" for threshold in (0.05, 0.1, 0.2, 0.4)),
    *(f"dicache:threshold={threshold}" for threshold in (0.1, 0.2, 0.4)),
    *(f"seacache:threshold={threshold}" for threshold in (0.25, 0.5, 1.0)),
    *(f"sencache:threshold={threshold}" for threshold in (0.05, 0.1, 0.2, 0.4)),
    *(f"speca:threshold={threshold}" for threshold in (0.1, 0.4)),
)
FITTED = (
    *(f"teacache:threshold={threshold}" for threshold in (0.02, 0.05, 0.1, 0.2, 0.4)),
    *(f"magcache:threshold={threshold}" for threshold in (0.03, 0.06, 0.12, 0.24)),
)
STATIC = (  # of 30 calls: 16, 11, 9, 7 and 6 full ones
    *(f"taylorseer:interval={n},level=last-block,predictor=foca" for n in (2, 3, 4, 5, 6)),
    "taylorseer:interval=4,order=1,level=last-block",
    "taylorseer:interval=3,level=last-block,predictor=newton",
)
INPUT = ("easycache:threshold=0.1", "easycache:threshold=0.2")
INSIDE = (
    "taylorseer:interval=3,order=1",
    "seacache:threshold=0.25",
    "seacache:threshold=0.5",
    "dicache:threshold=0.2",
    "cg-taylor:threshold=0.05",
    "speca:threshold=0.1",
)
RIMS = ("deepcache:interval=3,branch=0", "deepcache:interval=5,branch=0")
THEIRS = (
    *(
        f"diffusers-taylorseer:cache_interval={n},max_order=1,disable_cache_before_step=2"
        for n in (3, 4)
    ),
    "diffusers-first-block:threshold=0.1",
    *(
        f"cache-dit:residual_diff_threshold={threshold},Fn_compute_blocks=1,max_warmup_steps=3,dmd=1"
        for threshold in (0.16, 0.3)
    ),
)
UNET = (*STATIC, *INPUT, *RIMS)
POLICIES = {
    "fashion-dit": (*STATIC, *INPUT, *INSIDE, *THEIRS),
    "fashion-unet": UNET,
    "fashion-edm": UNET,
    "emoji": UNET,
}


Attach = Callable[[nn.Module, Mapping[str, Any], int], Callable[[], None]]
CACHE_DIT = "cache-dit"
CONTEXT = "cond"


def is_rival(spec: str) -> bool:
    """Returns whether a spec names a cache of somebody else."""
    return spec.partition(":")[0] in RIVALS


@contextmanager
def rival_cache(network: Network, spec: str, calls: int) -> Iterator[None]:
    """Yields a rival's cache on a network, for a run of so many calls.

    Raises:
        SettingError: if it is not installed, or refuses the network or the settings, in its words.
    """
    name, settings = parse_spec(spec)
    module: Any = network.module
    with _one_line_errors(spec):
        detach = RIVALS[name](module, settings, calls)
    try:
        yield
    finally:
        detach()


def rival_run(network: Network, spec: str, seeds: Sequence[int], nfe: int, **call: Any) -> Result:
    """Returns one run, in one batch, under a rival's cache; raises SettingError if it fails."""
    with rival_cache(network, spec, nfe), _one_line_errors(spec):
        return Sampler(network)(seeds, batch=len(seeds), nfe=nfe, **call)


def count_rival(
    network: Network, spec: str, seeds: Sequence[int], nfe: int, **call: Any
) -> tuple[Result, float]:
    """Returns such a run, and how many evaluations of the whole network take as many FLOPs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as cached:
        result = rival_run(network, spec, seeds, nfe, **call)
    labels = call.get("class_labels")
    one = {**call, "class_labels": labels[:1] if isinstance(labels, list) else labels}
    with FlopCounterMode(display=False) as full:
        Sampler(network)(seeds[:1], nfe=nfe, **one)
    share = cached.get_total_flops() / (full.get_total_flops() * len(seeds))
    return result, nfe * share


@contextmanager
def _one_line_errors(spec: str) -> Iterator[None]:
    """Turns whatever others raise into a SettingError of one line."""
    try:
        yield
    except FewstepError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise SettingError(f"{spec}: {type(error).__name__}: {reason}") from error


def _taylorseer(module: nn.Module, settings: Mapping[str, Any], calls: int) -> Callable[[], None]:
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    modules = list(describe(module).structure.modules)
    usual = {"cache_identifiers": modules, "taylor_factors_dtype": torch.float32}
    apply_taylorseer_cache(module, TaylorSeerCacheConfig(**{**usual, **settings}))
    return _in_context(module)


def _first_block(module: nn.Module, settings: Mapping[str, Any], calls: int) -> Callable[[], None]:
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    apply_first_block_cache(module, FirstBlockCacheConfig(**settings))
    return _in_context(module)


def _pab(module: nn.Module, settings: Mapping[str, Any], calls: int) -> Callable[[], None]:
    """Puts on PAB in a window of the run: its clock is told the call, counted down from 1000."""
    from diffusers.hooks import (
        PyramidAttentionBroadcastConfig,
        apply_pyramid_attention_broadcast,
    )

    given, done = {"range": 2, "window": [0.2, 0.9], **settings}, [0]
    low, high = (1000.0 * (1.0 - fraction) for fraction in given.pop("window"))
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=given.pop("range"),
        spatial_attention_timestep_skip_range=(high, low + 1e-6),
        current_timestep_callback=lambda: 1000.0 * (1.0 - (done[0] - 1) / calls),
        **given,
    )
    apply_pyramid_attention_broadcast(module, config)
    counter = module.register_forward_pre_hook(lambda *_: done.__setitem__(0, done[0] + 1))
    remove = _in_context(module)

    def detach() -> None:
        counter.remove()
        remove()

    return detach


def _in_context(module: Any) -> Callable[[], None]:
    """Names the context that hooks below a network need; returns what removes the hooks."""
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    HookRegistry.check_if_exists_or_initialize(module).invalidate_child_registries_cache()
    _set_cache_context(module, CacheContext(CONTEXT))

    def detach() -> None:
        for child in module.modules():
            registry = vars(child).get("_diffusers_hook")
            for name in list(registry.hooks) if registry is not None else ():
                registry.remove_hook(name, recurse=False)
            for each in ("forward", "_diffusers_hook") if registry is not None else ():
                vars(child).pop(each, None)

    return detach


def _cache_dit(module: nn.Module, settings: Mapping[str, Any], calls: int) -> Callable[[], None]:
    check_installed("cache_dit")
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")  # else it tells stdout of every run
    with warnings.catch_warnings(action="ignore"):
        import cache_dit
        from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern
        from cache_dit.caching.patch_functors import DiTPatchFunctor

    blocks = describe(module).blocks
    if architecture_of(module, exact=True) is not DIT:
        raise SettingError(f"cache-dit is set up here for DiT, not {type(module).__name__}")
    given = dict(settings)
    calibrator = _take_calibrator(cache_dit, given)
    adapter = BlockAdapter(
        transformer=module,
        blocks=module.get_submodule(blocks[0].group.path),
        forward_pattern=ForwardPattern.Pattern_3,
        patch_functor=DiTPatchFunctor(),
        check_forward_pattern=True,
    )
    before = {name: vars(module).get(name) for name in ("forward", "_norm1_emb", "_is_patched")}
    config = DBCacheConfig(num_inference_steps=calls, **given)
    cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)

    def detach() -> None:
        cache_dit.disable_cache(adapter)
        for name in before:
            vars(module).pop(name, None)

    return detach


def _take_calibrator(cache_dit: Any, given: dict[str, Any]) -> Any:
    """Takes out of the settings of cache-dit those of its calibrator; None without any."""
    order, foca, dmd = (given.pop(name, 0) for name in ("taylor", "foca", "dmd"))
    if order:
        return cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
    if foca:
        return cache_dit.FoCaCalibratorConfig()
    return cache_dit.DMDCalibratorConfig() if dmd else None


RIVALS: dict[str, Attach] = {
    "diffusers-pab": _pab,
    "diffusers-taylorseer": _taylorseer,
    "diffusers-first-block": _first_block,
    CACHE_DIT: _cache_dit,
}
