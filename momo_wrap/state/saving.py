"""An optimizer with the state of the model in its state dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from momo_wrap.bases import Bases
from momo_wrap.engine.scalars import scalar_template
from momo_wrap.losses import PendingLosses
from momo_wrap.model import Averaging
from momo_wrap.rules import StepRule, signed_bound
from momo_wrap.state.loading import check_loaded, with_entries
from momo_wrap.state.memory import Memory
from momo_wrap.state.previous import take_previous, with_previous
from momo_wrap.state.shared_state import SharedStateOptimizer


class SavesMemory(SharedStateOptimizer):
    """Saves the averages, the rule's memory, and the parameters before a measured step."""

    rule: StepRule
    _bases: Bases
    _memory: Memory
    _pending: PendingLosses

    def _weight_sums(self, first: int, averagings: Sequence[Averaging]) -> Tensor:
        return self._memory.weight_sums(first, averagings)

    def _check(self) -> None:
        check_loaded(self._bases.pairs)
        self._bases.check()

    def _export(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        like = scalar_template(self.param_groups, self._memory.averages)
        self._memory.prepare(self._bases.pairs, like)
        exported: dict[str, Any] = with_entries(state_dict, self._memory.entries())
        return with_previous(exported, self.param_groups, self._pending.before)

    def _import(self) -> None:
        last = self.__dict__.get("_memory")
        like = scalar_template(self.param_groups, None if last is None else last.averages)
        bound = signed_bound(self.rule, self._bases.sign)
        self._memory = Memory(self.rule.initial_memory(bound), like)
        self._pending.before = take_previous(self._bases.pairs, like)
        self._memory.prepare(self._bases.pairs, like)
