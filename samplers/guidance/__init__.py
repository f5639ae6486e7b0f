"""Guidance policies: a new one is a file here that registers itself."""

from typing import TYPE_CHECKING

from ...models.deprecated import serve_renamed
from .adaptive import AdaptiveGuidance
from .apg import APG
from .auto import AutoGuidance
from .base import (
    Guidance,
    Guide,
    Moment,
    Setup,
    Unguided,
    guidance,
    guide_x0,
    names,
    parse_guidance,
    policy_class,
    take_guidance,
)
from .cfg import CFG
from .cfg_cache import CFGCache
from .cfg_mp import CFGMP
from .cfg_pp import CFGPlusPlus
from .cfg_zero import CFGZeroStar
from .fbg import FeedbackGuidance
from .fdg import FDG
from .forecast import GuidanceForecast
from .history import History, PastBranches
from .interval import Interval
from .inverse import LinearMap, Measured
from .linear_ag import LinearAG
from .magnitude import MagnitudeAware
from .nested import warn_of_no_savings
from .pag import PerturbedAttention, SmoothedEnergy
from .rect_cfg_pp import RectifiedCFGPlusPlus
from .reg import REG
from .smc import SlidingModeCFG
from .tcfg import TCFG
from .threshold import Thresholded

__all__ = [
    "APG",
    "CFG",
    "CFGMP",
    "FDG",
    "REG",
    "TCFG",
    "AdaptiveGuidance",
    "AutoGuidance",
    "CFGCache",
    "CFGPlusPlus",
    "CFGZeroStar",
    "FeedbackGuidance",
    "Guidance",
    "GuidanceForecast",
    "Guide",
    "History",
    "Interval",
    "LinearAG",
    "LinearMap",
    "MagnitudeAware",
    "Measured",
    "Moment",
    "PastBranches",
    "PerturbedAttention",
    "RectifiedCFGPlusPlus",
    "Setup",
    "SlidingModeCFG",
    "SmoothedEnergy",
    "Thresholded",
    "Unguided",
    "guidance",
    "guide_x0",
    "names",
    "parse_guidance",
    "policy_class",
    "take_guidance",
    "warn_of_no_savings",
]

if not TYPE_CHECKING:  # to type checkers there are no old names
    __getattr__ = serve_renamed(__name__)
