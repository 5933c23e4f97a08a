"""The types that a type checker must infer; checked by mypy, never run."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import assert_type

from momo_wrap import (
    Adapter,
    Diagnosis,
    MoMo,
    MoMoStar,
    MoMoWrapper,
    StepRecord,
    StepRule,
    adapter_for,
    muon_and_adamw,
    register_adapter,
)
from momo_wrap.adapters import AdamAdapter
from momo_wrap.optim import MoMoAdamW, MoMoOptimizer, TrustedSGD

params = [torch.ones(1)]
optimizer = MoMoWrapper(torch.optim.AdamW(params, lr=1e-2))

assert_type(optimizer.step(loss=torch.ones(())), Tensor | float)
assert_type(optimizer.step(lambda: 1.0), Tensor | float)
assert_type(optimizer.step(), Tensor | float | None)
assert_type(optimizer.step(loss=torch.ones(()), lower_bound=0.5), Tensor | float)
assert_type(optimizer.step(lambda: 1.0, lower_bound=torch.ones(())), Tensor | float)
optimizer.record_loss(1.0, lower_bound=torch.ones(()))
optimizer.step(loss=1.0, lower_bound="0.5")  # type: ignore[call-overload]
optimizer.record_loss(torch.ones(()), weight=3)
assert_type(optimizer.last_step, StepRecord | None)
assert_type(optimizer.effective_lrs(), list[Tensor])
assert_type(optimizer.diagnosis(), Diagnosis)
assert_type(optimizer.base, torch.optim.Optimizer)
assert_type(optimizer.rule, StepRule)
assert_type(adapter_for(optimizer.base), Adapter)
register_adapter(torch.optim.Adam, AdamAdapter())

as_optimizer: torch.optim.Optimizer = optimizer
torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
MoMoWrapper(optimizer.base, MoMoStar(0.1), weight_decay_form="decoupled")

MoMoWrapper([torch.optim.AdamW(params), optimizer.base], nonfinite="skip", process_group=None)

assert_type(muon_and_adamw(torch.nn.Linear(1, 1), 1e-2, MoMoStar()), MoMoWrapper)
by_name = TrustedSGD(params, momentum=0.5, lower_bound=1.5, nonfinite="skip")
assert_type(by_name.step(loss=1.0), Tensor | float)
as_optimizer = MoMoAdamW(torch.nn.Linear(1, 1).named_parameters(), lr=0.1, rule=MoMoStar())
as_class: type[torch.optim.Optimizer] = MoMoAdamW
made = MoMoWrapper.of(torch.optim.NAdam, MoMoStar(), lr=0.1)
made_optimizer: MoMoOptimizer = made(params, lr=0.1, lower_bound=0.5)

TrustedSGD(params, betas=(0.9, 0.99))  # type: ignore[call-arg]
MoMoAdamW(params, lr="0.1")  # type: ignore[arg-type]
MoMoAdamW(params, nonfinite="ignore")  # type: ignore[arg-type]
MoMoWrapper.of(torch.optim.NAdam(params))  # type: ignore[arg-type]
MoMoWrapper(params)  # type: ignore[arg-type]
MoMoWrapper(optimizer.base, nonfinite="ignore")  # type: ignore[arg-type]
MoMoWrapper(optimizer.base, MoMo)  # type: ignore[arg-type]
MoMoWrapper(optimizer.base, weight_decay_form="coupled")  # type: ignore[arg-type]
optimizer.step(loss="1.0")  # type: ignore[call-overload]
optimizer.step(torch.ones(()))  # type: ignore[call-overload]
