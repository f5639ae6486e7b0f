"""Skips a stretch of blocks, as most policies do."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..architectures.stack import LiveBlock, Stack, State
from ..errors import ModelError, SettingError
from ..ledger import CacheLedger
from .base import Policy
from .calls import (
    Arguments,
    CallState,
    Part,
    Substitute,
    scatter_rows,
    select_argument,
    select_rows,
)
from .engine import Engine
from .memory import RowMemory

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
        self.keep = policy.keep
        if self.judge.reads("signal") and stack.structure.signal is None:
            raise ModelError(
                f"no modulated input is known for {type(root).__name__}, which {policy.info.name}"
                " looks at; use cg-taylor, first-block or magcache"
            )
        self.joint = bool(stack.blocks[-1].group.joint)

    def list_parts(self) -> dict[str, nn.Module]:
        return {each.name: each.module for each in self.blocks[: self.end + 1]}

    def list_skippable(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.blocks[self.lead : self.end + 1])

    def list_skipped(self, call: CallState) -> tuple[str, ...]:
        first = 0 if self._skips_lead(call) else self.lead
        return tuple(each.name for each in self.blocks[first : self.end + 1])

    def list_hooked(self) -> list[Part]:
        parts = [
            Part(block.module, partial(self.before, k, block), partial(self.after, k, block))
            for k, block in enumerate(self.blocks[: self.end + 1])
        ]
        signal = self.stack.signal_module
        if self.judge.reads("signal") and signal is not None:
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
        early = call.follows or self.judge.gate is None or self.judge.reads("input")
        return alone and self.keep.what == "state" and early and not self.predictor.needs_probe

    def _enter_first(self, call: CallState, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if self.joint:
            call.text_rows = self.stack.text_rows(args, kwargs)
        judged = self.judge.gate is not None and self.judge.gate.entry and not call.follows
        if judged or self.predictor.needs_probe:
            call.entered = self.blocks[0].read_input(args, kwargs, call.text_rows).image.clone()

    def _enter(
        self, call: CallState, block: LiveBlock, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Reads the start of the stretch, for the gate and for a residual."""
        start = block.read_input(args, kwargs, call.text_rows)
        if self.judge.gate is not None and not self.judge.reads("input") and not call.follows:
            self.judge.look(call, self._read_gate_input(call, start.image, args, kwargs))
        self.settle(call)
        if self.predictor.needs_probe:
            assert call.entered is not None
            call.probe = start.image - call.entered
        if self.keep.what == "residual" and (call.full or call.rows):
            text = start.text.clone() if self.policy.tail and start.text is not None else None
            call.start = State(start.image.clone(), text)

    def _read_gate_input(
        self, call: CallState, image: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        if self.judge.reads("residual"):
            assert call.entered is not None
            return image - call.entered
        if self.judge.reads("signal"):
            return self.stack.signal(args, kwargs) if call.entered is None else call.entered
        return image

    def _store(self, call: CallState, state: State) -> None:
        """Stores the end of the stretch at a full call."""
        track, index = call.track, call.place.index
        for name, value in self._list_values(call, state):
            if name not in track.stores:
                track.stores[name] = self.make_memory()
            track.stores[name].probe = call.probe
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
        for store in stores.values():
            store.probe = call.probe
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
