"""Strategies: ways to propose schedules, behind one registry. A new one is one file here."""

from importlib import import_module
from pkgutil import iter_modules

from .base import Proposal, Strategy, Task, names, register, strategy

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")

__all__ = ["Proposal", "Strategy", "Task", "names", "register", "strategy"]
