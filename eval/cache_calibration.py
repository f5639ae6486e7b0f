"""Calibration of teacache and magcache for a network, from full runs of it.

In every call of a run are noted

    d_i = sum |s_i - s_{i-1}| / sum |s_{i-1}|     of the signal s, the modulated input of block 0
    y_i = sum |o_i - o_{i-1}| / sum |o_{i-1}|     of the output o of the network
    g_i = mean |r_i| / |r_{i-1}|                  of the residual r that all blocks add to a token

TeaCache takes the polynomial that predicts y from d (arXiv:2411.19108), MagCache the ratios g
(arXiv:2506.09045). All hold for one network, solver, grid and number of steps.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.architectures.stack import Stack, describe
from ..models.caching import MagCache, TeaCache
from ..models.denoiser import Network
from ..models.errors import SettingError
from ..models.modules import hold, remove_hooks
from ..samplers.sampler import Sampler

DEGREE = 4  # of the published polynomials


@dataclass
class Observed:
    """The changes from each call of a run to the next, in its order; one longer than the run - 1.

    signal, output: d and y; ratios: g, with 1 for the first call.
    """

    signal: list[float] = field(default_factory=list)
    output: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def polynomial(self, degree: int = DEGREE) -> tuple[float, ...]:
        """Returns p with p(d) = y in the least squares, the highest power first.

        Fewer calls than it takes lower the degree. In a variable scaled to 1 at the largest d, for
        d ** 4 of small changes would vanish beside the rest.

        Raises:
            SettingError: if nothing was observed, as for a network without a known signal.
        """
        if len(self.signal) < 2:
            raise SettingError("teacache is fitted to runs of at least 3 calls of a known signal")
        degree = min(degree, len(self.signal) - 1)
        top = max(self.signal) or 1.0
        fitted = np.polyfit(np.array(self.signal) / top, np.array(self.output), degree)
        powers = range(degree, -1, -1)
        return tuple(
            float(f"{c / top**power:.6g}") for c, power in zip(fitted, powers, strict=True)
        )

    def teacache(self, policy: TeaCache) -> TeaCache:
        """Returns the policy with the fitted polynomial, unless it brings one."""
        return policy if policy.coefficients else replace(policy, coefficients=self.polynomial())

    def magcache(self, policy: MagCache) -> MagCache:
        """Returns the policy with the measured ratios, unless it brings some."""
        if policy.ratios is not None:
            return policy
        return replace(policy, ratios=tuple(float(f"{g:.5g}") for g in self.ratios))


@dataclass
class _Watcher:
    """Notes the changes between calls; holds what one call shows."""

    stack: Stack
    changes: Observed
    start: Tensor | None = None
    residual: Tensor | None = None
    signal: Tensor | None = None
    output: Tensor | None = None
    rows: int = 0

    def note_input(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        """Notes what goes into the first block, and the signal if no module gives it."""
        self.rows = self.stack.text_rows(args, kwargs)
        self.start = self.stack.blocks[0].read_input(args, kwargs, self.rows).image.clone()
        if self.stack.structure.signal is not None and self.stack.signal_module is None:
            self._signal(self.stack.signal(args, kwargs))

    def note_signal(self, module: nn.Module, args: Any, out: Any) -> None:
        """Notes the output of the module that the signal comes from."""
        self._signal(out[0] if isinstance(out, tuple) else out)

    def note_residual(self, block: nn.Module, args: Any, out: Any) -> None:
        """Notes how the residual of all blocks has grown."""
        assert self.start is not None
        residual = self.stack.blocks[-1].read_output(out, self.rows).image - self.start
        if self.residual is None or self.residual.shape != residual.shape:
            self.changes.ratios.append(1.0)
        else:
            self.changes.ratios.append(_growth(residual, self.residual))
        self.residual = residual

    def note_output(self, root: nn.Module, args: Any, out: Any) -> None:
        """Notes how the output of the network has changed."""
        output = (out if isinstance(out, Tensor) else out[0]).clone()
        if self.output is not None and self.output.shape == output.shape:
            self.changes.output.append(_change(output, self.output))
        self.output = output

    def _signal(self, signal: Tensor) -> None:
        signal = signal.clone()
        if self.signal is not None and self.signal.shape == signal.shape:
            self.changes.signal.append(_change(signal, self.signal))
        self.signal = signal


def observe(network: Network, seeds: Sequence[int], **call: Any) -> Observed:
    """Returns one run of seeds in one batch, watched; `call` are further arguments of `Sampler`.

    Raises:
        ModelError: if the blocks of the network are not known.
    """
    if network.module is None:
        raise SettingError(f"{network.name} is a plain function; a cache needs its module")
    stack, changes = describe(network.module), Observed()
    with hold(network.module, alone=True), _watch(stack, _Watcher(stack, changes)):
        Sampler(network)(seeds, batch=len(seeds), **call)
    return changes


@contextmanager
def _watch(stack: Stack, watcher: _Watcher) -> Iterator[None]:
    first, last = stack.blocks[0].module, stack.blocks[-1].module
    handles = [
        first.register_forward_pre_hook(watcher.note_input, with_kwargs=True),
        last.register_forward_hook(watcher.note_residual),
        stack.root.register_forward_hook(watcher.note_output),
    ]
    if stack.signal_module is not None:
        handles.append(stack.signal_module.register_forward_hook(watcher.note_signal))
    with remove_hooks(handles):
        yield


def _change(new: Tensor, old: Tensor) -> float:
    """Returns sum |new - old| / sum |old|."""
    apart, size = ((new - old).abs().sum(dtype=torch.float64), old.abs().sum(dtype=torch.float64))
    return float(apart / size)


def _growth(new: Tensor, old: Tensor) -> float:
    """Returns the mean of |new| / |old| over the tokens that something was added to before."""
    size, before = new.float().norm(dim=-1), old.float().norm(dim=-1)
    return float((size / before)[before > 0].mean())
