"""fastai: the same steps as by hand, one cycle, the search for a learning rate, saved runs."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader as Loader
from torch.utils.data import TensorDataset

from momo_wrap import MoMo, MoMoWrapper, StepRecord
from momo_wrap.integrations import losses_from_backward, step_metrics
from momo_wrap.optim import TrustedAdamW
from tests.integrations import task
from tests.problems import flat, last_step

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what fastai says to torch, as it is imported
    pytest.importorskip("fastai.learner", reason="fastai is not installed")
    import fastai.callback.schedule  # noqa: F401, which gives a Learner fit_one_cycle
    from fastai.callback.core import Callback, CancelBatchException
    from fastai.callback.fp16 import MixedPrecision
    from fastai.callback.progress import ProgressCallback
    from fastai.callback.training import GradientAccumulation, GradientClip
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import Adam, OptimWrapper

    from momo_wrap.integrations.fastai import MoMoCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # what fastai says to the packages that it uses


def loaders() -> Any:
    data = TensorDataset(*task.data(torch.float32))  # fastai's Recorder knows no other
    return DataLoaders(*(Loader(data, batch_size=task.BATCH_SIZE) for _ in range(2)))


def learner(path: Path, *callbacks: Any, **more: Any) -> Any:
    """A Learner whose optimizer is that of the task."""
    model = task.network(torch.float32)
    settings = {"opt_func": OptimWrapper(opt=task.wrapped(model)), "lr": [0.1, 0.3], "wd": 0.01}
    made = Learner(
        loaders(),
        model,
        loss_func=nn.functional.mse_loss,
        cbs=[MoMoCallback(), *callbacks],
        path=path,
        **{**settings, **more},
    )
    made.remove_cb(ProgressCallback)
    made.logger = lambda *_: None
    return made


def trained(path: Path, *callbacks: Any) -> tuple[Tensor, list[StepRecord]]:
    made = learner(path, *callbacks)
    records = task.watched(made.opt_func.opt)
    made.fit(3)
    return flat(list(made.model.parameters())), records


@pytest.mark.parametrize("clip", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_steps_are_those_by_hand(tmp_path: Path, accumulate: int, clip: float | None) -> None:
    callbacks = [] if clip is None else [GradientClip(clip)]
    if accumulate > 1:  # counted in samples
        callbacks.append(GradientAccumulation(accumulate * task.BATCH_SIZE))
    params, records = trained(tmp_path, *callbacks)
    by_hand, expected = task.by_hand(3, accumulate, clip, dtype=torch.float32)
    task.assert_same_steps(records, expected, 1e-4)
    torch.testing.assert_close(params, by_hand, rtol=1e-4, atol=1e-4)


class Scaled(MixedPrecision):  # type: ignore[misc]
    """With a scaler for the CPU."""

    def before_fit(self) -> None:
        super().before_fit()
        self.autocast = torch.autocast("cpu", enabled=False)
        self.learn.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)


class Overflow(Callback):  # type: ignore[misc]
    """The fourth batch of each epoch overflows, or is skipped."""

    def __init__(self, *, leave_out: bool) -> None:
        self.leave_out = leave_out

    def before_backward(self) -> None:
        if self.iter == 3 and self.leave_out:
            raise CancelBatchException
        if self.iter == 3:
            self.learn.loss_grad = self.loss_grad * float("inf")


def test_scale_of_mixed_precision_is_undone(tmp_path: Path) -> None:
    """Bit for bit, and a step that is skipped leaves nothing behind."""
    params, records = trained(tmp_path, Scaled(), Overflow(leave_out=False))
    same, expected = trained(tmp_path, Overflow(leave_out=True))
    assert len(records) == 3 * (task.BATCHES - 1)
    task.assert_same_steps(records, expected, 0.0)
    assert torch.equal(params, same)


def test_without_the_callback_the_error_names_it(tmp_path: Path) -> None:
    made = learner(tmp_path)
    made.remove_cb(MoMoCallback)
    with pytest.raises(TypeError, match=r"fastai calls it: give the Learner cbs=MoMoCallback\(\)"):
        made.fit(1)


def test_losses_are_also_learned_from_backward(tmp_path: Path) -> None:
    made = learner(tmp_path)
    made.remove_cb(MoMoCallback)
    records = task.watched(made.opt_func.opt)
    with losses_from_backward(made.opt_func):
        made.fit(3)
    task.assert_same_steps(records, task.by_hand(dtype=torch.float32)[1], 1e-4)


def test_fastai_has_optimizers_of_its_own(tmp_path: Path) -> None:
    made = learner(tmp_path, opt_func=Adam, lr=0.1)
    with pytest.raises(TypeError, match=r"opt_func=partial\(OptimWrapper, opt="):
        made.fit(1)


def test_one_cycle_with_a_class(tmp_path: Path) -> None:
    """It moves the cap and the first of the betas of a class that fastai makes."""
    made = learner(tmp_path, opt_func=partial(OptimWrapper, opt=TrustedAdamW), lr=100.0)
    made.fit_one_cycle(8, lr_max=100.0)
    optimizer = made.opt.opt
    assert type(optimizer) is TrustedAdamW
    (group,) = optimizer.param_groups
    assert group["lr"] < 1.0
    assert group["betas"][0] == pytest.approx(0.95, abs=1e-3)
    assert list(step_metrics(made.opt)) == ["momo/theta", "momo/effective_lr"]
    losses = [float(loss) for loss in made.recorder.losses]
    assert sum(losses[-task.BATCHES :]) < 0.9 * sum(losses[: task.BATCHES])


def test_search_for_a_learning_rate_leaves_no_trace(tmp_path: Path) -> None:
    made = learner(tmp_path, opt_func=partial(OptimWrapper, opt=TrustedAdamW), lr=100.0)
    made.fit(1)
    before = flat(list(made.model.parameters())).clone()
    state = str(made.opt.state_dict())
    made.lr_find(end_lr=1000, num_it=20, show_plot=False)
    assert torch.equal(before, flat(list(made.model.parameters())))
    assert str(made.opt.state_dict()) == state


def test_a_saved_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    make = partial(OptimWrapper, opt=MoMoWrapper.of(torch.optim.AdamW, MoMo(0.1)))
    whole, resumed = (learner(tmp_path, opt_func=make, lr=0.3) for _ in range(2))
    whole.fit(2)
    whole.save("run")
    whole.fit(2)
    resumed.create_opt()
    resumed.load("run")
    resumed.fit(2)
    assert torch.equal(*(flat(list(made.model.parameters())) for made in (whole, resumed)))
    assert last_step(whole.opt.opt) == last_step(resumed.opt.opt)
    assert float(last_step(whole.opt.opt).theta) < 1
