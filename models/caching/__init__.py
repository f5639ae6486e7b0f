"""Caches: skip blocks of a network where they can be reused or forecast."""

from typing import TYPE_CHECKING

from ..architectures.discover import observe
from ..deprecated import serve_renamed
from .attach import Attachment, caching, disable_cache, enable_cache, find_attachment
from .base import CacheInfo, Policy, cache, names, policy_class, register, take_cache
from .cg_taylor import CGTaylor
from .deepcache import DeepCache
from .dicache import DiCache
from .easycache import EasyCache
from .fastercache import FasterCache
from .first_block import FirstBlock
from .fixed_mask import FixedMask
from .magcache import MagCache
from .pab import PAB
from .seacache import SeaCache
from .sencache import SenCache
from .speca import SpeCa
from .taylorseer import TaylorSeer
from .teacache import TeaCache

__all__ = [
    "PAB",
    "Attachment",
    "CGTaylor",
    "CacheInfo",
    "DeepCache",
    "DiCache",
    "EasyCache",
    "FasterCache",
    "FirstBlock",
    "FixedMask",
    "MagCache",
    "Policy",
    "SeaCache",
    "SenCache",
    "SpeCa",
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

if not TYPE_CHECKING:  # to type checkers there are no old names
    __getattr__ = serve_renamed(__name__)
