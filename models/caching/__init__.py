"""Caches: skip blocks of a network where they can be reused or forecast."""

from ..architectures.discover import observe
from .attach import Attachment, caching, disable_cache, enable_cache, find_attachment
from .base import CacheInfo, Policy, cache, names, policy_class, register, take_cache
from .cg_taylor import CGTaylor
from .deepcache import DeepCache
from .first_block import FirstBlock
from .fixed_mask import FixedMask
from .magcache import MagCache
from .taylorseer import TaylorSeer
from .teacache import TeaCache

__all__ = [
    "Attachment",
    "CGTaylor",
    "CacheInfo",
    "DeepCache",
    "FirstBlock",
    "FixedMask",
    "MagCache",
    "Policy",
    "TaylorSeer",
    "TeaCache",
    "cache",
    "caching",
    "disable_cache",
    "enable_cache",
    "find_attachment",
    "names",
    "observe",
    "policy_class",
    "register",
    "take_cache",
]
