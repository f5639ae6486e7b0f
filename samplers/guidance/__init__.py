"""Guidance policies."""

from .base import Guidance, Unguided
from .cfg import CFG

__all__ = ["CFG", "Guidance", "Unguided"]
