"""Guidance policies."""

from .base import Guidance, Unguided
from .cfg import CFG
from .threshold import Thresholded

__all__ = ["CFG", "Guidance", "Thresholded", "Unguided"]
