"""Skips a stretch of blocks, as most policies do."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.stack import LiveBlock, Stack, State
from ..devices import Reading
from ..errors import ModelError, SettingError
from ..ledger import CacheLedger
from .base import Policy
from .calls import (
    Arguments,
    CallState,
    Part,
    Substitute,
    find_worst,
    scatter_rows,
    select_argument,
    select_rows,
    sum_errors,
)
from .engine import Engine
from .memory import Memory, RowMemory
from .predictors import Predictor

IMAGE, TEXT = "image", "text"


class StackEngine(Engine):
    """Skips the blocks between the leading and the trailing ones."""

    def __init__(self, root: nn.Module, policy: Policy, ledger: CacheLedger, stack: Stack) -> None:
        super().__init__(root, policy, ledger)
        self.blocks = stack.blocks
        self.stack, self.lead, self.end = stack, policy.lead, len(stack.blocks) - policy.tail - 1
        if self.lead > self.end:
            raise SettingError(
                f"{type(root).__name__} has {len(stack.blocks)} blocks; {policy.info.name} with"
                f" lead={policy.lead} and tail={policy.tail} leaves none to skip"
            )
        if policy.tail and not stack.structure.chained:
            raise SettingError(
                f"blocks of {type(root).__name__} read what earlier ones left aside, so none can"
                f" run after skipped ones; set tail=0 of {policy.info.name}"
            )
        self.gate, self.keep = policy.gate, policy.keep
        if self.gate is not None and self.gate.reads == "signal" and stack.structure.signal is None:
            raise ModelError(
                f"no modulated input is known for {type(root).__name__}, which {policy.info.name}"
                " looks at; use cg-taylor, first-block or magcache"
            )
        self.joint = bool(stack.blocks[-1].group.joint)
        self.by_row = self.gate is not None and self.gate.reduce == "per-sample"

    def list_parts(self) -> dict[str, nn.Module]:
        return {each.name: each.module for each in self.blocks[: self.end + 1]}

    def list_skipped(self, call: CallState) -> tuple[str, ...]:
        first = 0 if self._skips_lead(call) else self.lead
        return tuple(each.name for each in self.blocks[first : self.end + 1])

    def list_hooked(self) -> list[Part]:
        parts = [
            Part(block.module, partial(self.before, k, block), partial(self.after, k, block))
            for k, block in enumerate(self.blocks[: self.end + 1])
        ]
        signal = self.stack.signal_module
        if self.gate is not None and self.gate.reads == "signal" and signal is not None:
            parts.append(Part(signal, _leave_arguments, self.watch))
        return [] if self.policy.off else parts

    def watch(self, out: Any) -> Any:
        """Notes the output of a module before the blocks, for the gate."""
        if self.active:
            self.state.entered = (out[0] if isinstance(out, tuple) else out).clone()
        return out

    def before(
        self, k: int, block: LiveBlock, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Substitute | Arguments | None:
        """Decides whether a block runs, on which rows, or what stands for its output."""
        if not self.active:
            return None
        call = self.state
        if k == 0:
            self._enter_first(call, args, kwargs)
        if k < self.lead:
            return Substitute(block.pass_through(args, kwargs)) if self._skips_lead(call) else None
        if k == self.lead:
            self._enter(call, block, args, kwargs)
        if call.full:
            return None
        if call.rows:
            call.before = block.read_input(args, kwargs, call.text_rows)
            return (), {n: select_argument(n, v, call) for n, v in block.call(args, kwargs).items()}
        return Substitute(self._skip(k, block, args, kwargs))

    def after(self, k: int, block: LiveBlock, out: Any) -> Any:
        """Stores or joins the output of a block."""
        if not self.active or k < self.lead:
            return out
        call = self.state
        if not call.full:
            return self._join_rows(k, block, block.read_output(out, call.text_rows))
        if k == self.end:
            self._store(call, block.read_output(out, call.text_rows))
        return out

    def _skips_lead(self, call: CallState) -> bool:
        """Tells whether leading blocks need not run: for no gate, and no start of a residual."""
        alone = call.full is False and not call.rows
        return alone and self.keep.what == "state" and (call.follows or self.gate is None)

    def _enter_first(self, call: CallState, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if self.joint:
            call.text_rows = self.stack.text_rows(args, kwargs)
        if self.gate is not None and self.gate.reads == "residual" and not call.follows:
            call.entered = self.blocks[0].read_input(args, kwargs, call.text_rows).image.clone()

    def _enter(
        self, call: CallState, block: LiveBlock, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Reads the start of the stretch, for the gate and for a residual."""
        start = block.read_input(args, kwargs, call.text_rows)
        if self.gate is not None and not call.follows:
            self._judge(call, self._read_gate_input(call, start.image, args, kwargs))
        self.settle(call)
        if self.keep.what == "residual" and (call.full or call.rows):
            text = start.text.clone() if self.policy.tail and start.text is not None else None
            call.start = State(start.image.clone(), text)

    def _read_gate_input(
        self, call: CallState, image: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        assert self.gate is not None
        if self.gate.reads == "residual":
            assert call.entered is not None
            image = image - call.entered
        elif self.gate.reads == "signal":
            image = self.stack.signal(args, kwargs) if call.entered is None else call.entered
        return image[:, :: self.gate.stride] if self.gate.stride > 1 else image

    def _judge(self, call: CallState, x: Tensor) -> None:
        gate, track = self.gate, call.track
        assert gate is not None
        if track.gate is None:
            track.gate = self._make_memory(call, gate.predictor)
        if call.full is None:
            self._decide(call, x, track.gate)
        if gate.every_call or call.full:
            track.gate.update(x, call.place.index)
        elif call.rows:
            assert isinstance(track.gate, RowMemory)
            track.gate.update(select_rows(x, call.rows), call.place.index, call.rows)

    def _decide(self, call: CallState, x: Tensor, memory: Memory) -> None:
        """Decides by two sums per image, which come to the host; NaN and infinity are computed."""
        assert self.gate is not None
        if not memory:
            call.full = True
            return
        sums = sum_errors(memory.forecast(call.place.index), x, self.gate.relative_to)
        errors = self._read_errors(sums, len(call.place.branches))
        self.ledger.notice(errors)
        call.error = max(errors) if len(errors) > 1 else errors[0]
        if self.by_row:
            self._decide_rows(call, errors)
            return
        call.track.errors.append(call.error)
        call.full = not (math.isfinite(call.error) and self.policy.accepts(call.track.errors))

    def _read_errors(self, sums: Tensor, branches: int) -> list[float]:
        """Returns one error, or one per image: the worse of its branches."""
        assert self.gate is not None
        if self.gate.reduce == "mean":
            sums = sums.sum(dim=1, keepdim=True)
        if self.group is not None:
            torch.distributed.all_reduce(sums, group=self.group)
        difference, size = Reading(sums).numbers()
        ratios = [a / b if b > 0.0 else float("nan") for a, b in zip(difference, size, strict=True)]
        if self.gate.reduce == "per-sample":
            images = len(ratios) // branches
            return [find_worst(ratios[b::images]) for b in range(images)]
        return [find_worst(ratios)]

    def _decide_rows(self, call: CallState, errors: Sequence[float]) -> None:
        images, length = len(errors), self._lengths[call.place.stage]
        failing = [
            b
            for b, error in enumerate(errors)
            if self._must(call.place.index, call.track.last[b], length)
            or not (math.isfinite(error) and self.policy.accepts([error]))
        ]
        branches = range(len(call.place.branches))
        call.full = len(failing) == images
        call.rows = () if call.full else tuple(p * images + b for p in branches for b in failing)

    def _make_memory(self, call: CallState, predictor: Predictor) -> Memory:
        calls = self.find_length(call.place.stage)
        return predictor.make_row_memory(calls) if self.by_row else predictor.make_memory(calls)

    def _store(self, call: CallState, state: State) -> None:
        """Stores the end of the stretch at a full call."""
        track, index = call.track, call.place.index
        for name, value in self._list_values(call, state):
            if name not in track.stores:
                track.stores[name] = self._make_memory(call, self.keep.predictor)
            track.stores[name].update(value, index)

    def _list_values(self, call: CallState, state: State) -> list[tuple[str, Tensor]]:
        start = call.start
        values = [(IMAGE, state.image if start is None else state.image - start.image)]
        if self.policy.tail and state.text is not None:
            moved = start is not None and start.text is not None
            values.append((TEXT, state.text - start.text if moved else state.text))  # type: ignore[union-attr,operator]
        return values

    def _skip(
        self, k: int, block: LiveBlock, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Forecasts the end of the stretch at a skipped call."""
        if k < self.end:
            return block.pass_through(args, kwargs)
        start = block.read_input(args, kwargs, self.state.text_rows)
        return block.lay_out(self._forecast_state(self.state, start))

    def _forecast_state(self, call: CallState, start: State) -> State:
        stores, index = call.track.stores, call.place.index
        onto = self.keep.what == "residual"
        image = stores[IMAGE].forecast(index, start.image if onto else None)
        text = start.text
        if TEXT in stores:
            text = stores[TEXT].forecast(index, text if onto else None)
            text = text if start.text is None else text.to(start.text.dtype)
        return State(image.to(start.image.dtype), text)

    def _join_rows(self, k: int, block: LiveBlock, after: State) -> Any:
        """Joins the rows that ran with the others, which are forecast at the end."""
        call = self.state
        others = call.before
        assert others is not None
        if k == self.end:
            others = self._forecast_state(call, others)
            self._store_rows(call, after)
        return block.lay_out(State(*map(scatter_rows, others, after, [call.rows] * 2)))

    def _store_rows(self, call: CallState, after: State) -> None:
        start = call.start
        if start is not None:
            picked = [None if each is None else select_rows(each, call.rows) for each in start]
            call.start = State(*picked)  # type: ignore[arg-type]
        for name, value in self._list_values(call, after):
            store = call.track.stores[name]
            assert isinstance(store, RowMemory)
            store.update(value, call.place.index, call.rows)
        for row in call.rows:
            call.track.last[row] = call.place.index


def _leave_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    return None
