"""A plan that is kept from step to step equals a new one."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, AdamW, NAdam, Optimizer

from momo_wrap import Adapter, MoMo, MoMoWrapper, ProposingAdapter, StepRule, TrustedMoMo
from momo_wrap.testing.blocks import block_elements
from momo_wrap.testing.setting import Soft

# Blocks of 64 elements, of which tensors up to 16 are packed; and the usual ones.
SHAPES = [(3, 4), (5,), (9, 8), (2, 3, 2, 2), (2, 4), (), (0, 2), (4, 2), (3, 3)]
ELEMENTS = [64, 2**18]
STEPS = 10


@dataclass(frozen=True)
class Base:
    """An optimizer, and which of its settings may change."""

    kind: Callable[..., Optimizer]
    settings: dict[str, Any]
    changes: dict[str, list[Any]]
    adapter: Adapter | None = None

    def make(self, groups: Any) -> Optimizer:
        return self.kind(groups, **self.settings)


BETAS = [(0.8, 0.95), (0.9, 0.999), (0.5, 0.9)]
BASES = {
    "SGD": Base(
        SGD,
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
        {"momentum": [0.9, 0.5, 0.7], "weight_decay": [0.0, 0.2]},
    ),
    "AdamW": Base(
        AdamW,
        {"lr": 0.02, "weight_decay": 0.1},
        {"betas": BETAS, "weight_decay": [0.0, 0.05, 0.3]},
    ),
    "NAdam": Base(
        NAdam, {"lr": 0.02, "weight_decay": 0.1}, {"betas": BETAS, "momentum_decay": [4e-3, 0.1]}
    ),
    "proposed": Base(
        SGD,
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
        {"momentum": [0.9, 0.5], "weight_decay": [0.0, 0.2]},
        ProposingAdapter(),
    ),
}


@dataclass
class World:
    """Parameters, an optimizer for some of them, and what happens to both."""

    base: Base
    wrap: Callable[[Optimizer], Optimizer]
    groups: int = 1
    dtype: torch.dtype = torch.float64
    without_gradient: set[int] = field(default_factory=set)
    thetas: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.targets = [self._random(shape) for shape in SHAPES]
        self.params = [self._random(shape).requires_grad_() for shape in SHAPES]
        dealt = [
            {
                "params": self.params[i :: self.groups],
                "lr": self.base.settings["lr"] * (1 - 0.2 * i),
            }
            for i in range(self.groups)
        ]
        self.optimizer = self.wrap(self.base.make(dealt))

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return values.to(self.dtype)

    @property
    def inner(self) -> Optimizer:
        """The base itself, wrapped or not."""
        inner: Optimizer = getattr(self.optimizer, "base", self.optimizer)
        return inner

    def gradients(self) -> Tensor:
        """Set the gradients of the parameters that have one; return the loss."""
        together = torch.stack([p.double().sum() for p in self.params]).sum()
        loss = 0.005 * together.square() + 0.1
        for param, target in zip(self.params, self.targets, strict=True):
            loss = loss + 0.3 * (param.double() - target.double()).square().sum()
        wanted = [
            p
            for i, p in enumerate(self.params)
            if p.requires_grad and i not in self.without_gradient
        ]
        for param in self.params:
            param.grad = None
        if wanted:
            for param, grad in zip(wanted, torch.autograd.grad(loss, wanted), strict=True):
                param.grad = grad
        return loss.detach()

    def step(self) -> None:
        loss = self.gradients()
        if isinstance(self.optimizer, MoMoWrapper):
            self.optimizer.step(loss=loss)
            assert self.optimizer.last_step is not None
            self.thetas.append(float(self.optimizer.last_step.theta))
        else:
            self.optimizer.step()

    def flat(self) -> Tensor:
        return torch.cat([p.detach().double().reshape(-1) for p in self.params])


def toggle_gradient(world: World, i: int) -> None:
    world.without_gradient ^= {i % len(world.params)}


def freeze_or_unfreeze(world: World, i: int) -> None:
    param = world.params[i % len(world.params)]
    param.requires_grad_(not param.requires_grad)


def join(world: World, i: int) -> None:
    late = world._random(SHAPES[i % 4])
    world.targets.append(world._random(SHAPES[i % 4]))
    world.params.append(late.requires_grad_())
    lr = world.base.settings["lr"] * (1.0 if i % 2 else 0.5)
    world.optimizer.add_param_group({"params": [late], "lr": lr})


def reverse_parameters(world: World, i: int) -> None:
    groups = world.inner.param_groups
    groups[i % len(groups)]["params"].reverse()


def reverse_groups(world: World, _: int) -> None:
    world.inner.param_groups.reverse()


def remove_parameter(world: World, i: int) -> None:
    groups = world.inner.param_groups
    params = groups[i % len(groups)]["params"]
    if len(params) > 1:
        # Torch can't save a state without its parameter.
        world.inner.state.pop(params.pop(i % len(params)), None)


def new_storage(world: World, i: int) -> None:
    param = world.params[i % len(world.params)]
    param.data = param.data.clone()


def another_layout(world: World, i: int) -> None:
    """Transposed matrices, images with the channels last, and back."""
    for param in world.params[i % 2 :: 2]:
        data = param.data
        if data.dim() == 4:
            is_usual = data.is_contiguous()
            form = torch.channels_last if is_usual else torch.contiguous_format
            param.data = data.contiguous(memory_format=form)
        elif data.dim() == 2:
            param.data = data.t().contiguous().t() if data.is_contiguous() else data.contiguous()


def exchange_storages(world: World, _: int) -> None:
    one, other = world.params[4], world.params[7].data.t()
    one.data, world.params[7].data = other.contiguous(), one.data.t().contiguous()


def rebind_state(world: World, _: int) -> None:
    for entry in world.inner.state.values():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                entry[name] = value.clone()


def another_layout_of_state(world: World, _: int) -> None:
    for entry in world.inner.state.values():
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.dim() == 2:
                is_usual = value.is_contiguous()
                entry[name] = value.t().contiguous().t() if is_usual else value.contiguous()


def transpose_state_in_place(world: World, _: int) -> None:
    """The same memory, from the same place on, in another order."""
    for entry in world.inner.state.values():
        for value in entry.values():
            if isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] == value.shape[1]:
                value.t_()


def another_lr(world: World, i: int) -> None:
    groups = world.inner.param_groups
    groups[i % len(groups)]["lr"] = world.base.settings["lr"] * (0.5 + 0.1 * (i % 7))


def lr_as_a_tensor(world: World, i: int) -> None:
    groups = world.inner.param_groups
    lr = float(groups[i % len(groups)]["lr"])
    groups[i % len(groups)]["lr"] = torch.tensor(lr, dtype=torch.float64)


def lr_in_place(world: World, _: int) -> None:
    for group in world.inner.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].mul_(0.7)


def another_setting(world: World, i: int) -> None:
    groups = world.inner.param_groups
    names = sorted(world.base.changes)
    name = names[i % len(names)]
    values = world.base.changes[name]
    groups[i % len(groups)][name] = values[i % len(values)]


def load(world: World, _: int) -> None:
    world.optimizer.load_state_dict(world.optimizer.state_dict())


def load_into_the_base(world: World, _: int) -> None:
    world.inner.load_state_dict(world.inner.state_dict())


EVENTS: list[Callable[[World, int], None]] = [
    toggle_gradient,
    freeze_or_unfreeze,
    join,
    reverse_parameters,
    reverse_groups,
    remove_parameter,
    new_storage,
    another_layout,
    exchange_storages,
    rebind_state,
    another_layout_of_state,
    transpose_state_in_place,
    another_lr,
    lr_as_a_tensor,
    lr_in_place,
    another_setting,
    load,
    load_into_the_base,
]
History = list[list[tuple[Callable[[World, int], None], int]]]
# What happens before each of the steps; the first two are undisturbed.
histories: st.SearchStrategy[History] = st.lists(
    st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 20)), max_size=2),
    min_size=4,
    max_size=STEPS - 2,
)

every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


def run(worlds: Sequence[World], history: History) -> None:
    """Take the steps of a history in several worlds at once, and compare after each."""
    for step, events in enumerate([[], [], *history]):
        for world in worlds:
            for event, i in events:
                event(world, i)
            world.step()
        first, second = (world.flat() for world in worlds)
        names = [event.__name__ for event, _ in events]
        distance = float((first - second).norm() / second.norm())
        assert distance < 1e-11, (step, names, distance)


def unbounded(base: Base) -> Callable[[Optimizer], MoMoWrapper]:
    return lambda inner: MoMoWrapper(inner, MoMo(-math.inf), adapter=base.adapter)


def run_beside_the_bare_optimizer(base: Base, groups: int, elements: int, history: History) -> None:
    with block_elements(elements):
        run(
            [World(base, unbounded(base), groups), World(base, lambda inner: inner, groups)],
            history,
        )


@every_base
@given(groups=st.sampled_from([1, 3]), elements=st.sampled_from(ELEMENTS), history=histories)
@settings(max_examples=8)
def test_without_a_bound_all_steps_are_the_bare_ones(
    base: Base, groups: int, elements: int, history: History
) -> None:
    run_beside_the_bare_optimizer(base, groups, elements, history)


@every_base
@pytest.mark.parametrize("event", EVENTS, ids=[event.__name__ for event in EVENTS])
def test_without_a_bound_each_event_alone(base: Base, event: Callable[[World, int], None]) -> None:
    """Twice, to see that the first change was undone."""
    run_beside_the_bare_optimizer(base, 3, 64, [[(event, 3)], [(event, 3)], []])


class RebuiltWorld(World):
    """A run that keeps only the entries of its state dict from step to step."""

    def step(self) -> None:
        super().step()
        wrapper = self.optimizer
        assert isinstance(wrapper, MoMoWrapper)
        base, saved = wrapper.base, wrapper.state_dict()
        # The base stays: torch would load its state in another dtype.
        for group, its in zip(base.param_groups, saved["param_groups"], strict=True):
            group.update({name: value for name, value in its.items() if name.startswith("momo_")})
        self.optimizer = self.wrap(base)


def run_beside_rebuilt(
    base: Base, rule: Callable[[], StepRule], groups: int, elements: int, history: History
) -> None:
    def wrap(inner: Optimizer) -> MoMoWrapper:
        return MoMoWrapper(inner, rule(), adapter=base.adapter)

    with block_elements(elements):
        worlds = [World(base, wrap, groups), RebuiltWorld(base, wrap, groups)]
        run(worlds, history)
    assert worlds[0].thetas == worlds[1].thetas


RULES: dict[str, Callable[[], StepRule]] = {
    "soft": Soft,
    "trusted": lambda: TrustedMoMo(start=0.5, window=4.0),
}


@every_base
@given(
    rule=st.sampled_from(sorted(RULES)),
    groups=st.sampled_from([1, 3]),
    elements=st.sampled_from(ELEMENTS),
    history=histories,
)
@settings(max_examples=6)
def test_with_a_bound_steps_are_those_of_a_wrapper_that_is_made_anew(
    base: Base, rule: str, groups: int, elements: int, history: History
) -> None:
    run_beside_rebuilt(base, RULES[rule], groups, elements, history)


@pytest.mark.parametrize("base", [BASES["SGD"], BASES["proposed"]], ids=["SGD", "proposed"])
@pytest.mark.parametrize("event", EVENTS, ids=[event.__name__ for event in EVENTS])
def test_with_a_bound_each_event_alone(base: Base, event: Callable[[World, int], None]) -> None:
    run_beside_rebuilt(base, Soft, 3, 64, [[(event, 3)], [(event, 3)], []])


@every_base
@pytest.mark.parametrize("first", [torch.float32, torch.float64])
@pytest.mark.parametrize("elements", ELEMENTS)
def test_another_dtype(base: Base, first: torch.dtype, elements: int) -> None:
    """Parameters and state are converted in mid-run, first one parameter, then all."""
    second = torch.float64 if first is torch.float32 else torch.float32

    def convert(world: World, params: Sequence[Tensor]) -> None:
        for param in params:
            if not param.dim():
                continue  # its state has the shape of a count of steps
            param.data, param.grad = param.data.to(second), None
            entry = world.inner.state[param]
            for name, value in entry.items():
                if isinstance(value, Tensor) and value.dim():
                    entry[name] = value.to(second)

    with block_elements(elements):
        worlds = [
            World(base, unbounded(base), 1, first),
            World(base, lambda inner: inner, 1, first),
        ]
        for step in range(6):
            for world in worlds:
                if step == 2:
                    convert(world, world.params[2:3])
                if step == 4:
                    convert(world, world.params[:2] + world.params[3:])
                world.step()
            ours, theirs = (world.flat() for world in worlds)
            assert float((ours - theirs).norm() / theirs.norm()) < 1e-6, step
    assert {p.dtype for p in worlds[0].params} == {first, second}


@every_base
@pytest.mark.parametrize("elements", ELEMENTS)
def test_a_parameter_that_grows(base: Base, elements: int) -> None:
    """As an embedding does that gets further rows: data and state are replaced, not the object."""

    def grow(world: World) -> None:
        for i in (0, 2):
            param, target = world.params[i], world.targets[i]
            rows = torch.full((2, *target.shape[1:]), 0.5, dtype=torch.float64)
            world.targets[i] = torch.cat([target, rows])
            for name, value in world.inner.state[param].items():
                if isinstance(value, Tensor) and value.dim():
                    world.inner.state[param][name] = torch.cat([value, 0 * rows])
            param.grad, param.data = None, torch.cat([param.data, rows])

    with block_elements(elements):
        worlds = [World(base, unbounded(base)), World(base, lambda inner: inner)]
        for step in range(5):
            for world in worlds:
                if step == 2:
                    grow(world)
                world.step()
            ours, theirs = (world.flat() for world in worlds)
            assert float((ours - theirs).norm() / theirs.norm()) < 1e-11, step


def test_a_wider_group_that_joins_one_of_several_optimizers() -> None:
    """All scalars then have its dtype, including the saved ones."""

    def make() -> tuple[list[Tensor], MoMoWrapper]:
        torch.manual_seed(0)
        params = [torch.randn(4, requires_grad=True) for _ in range(2)]
        bases = [SGD(params[:1], lr=0.1, momentum=0.9), SGD(params[1:], lr=0.1, momentum=0.9)]
        return params, MoMoWrapper(bases, MoMo(-math.inf))

    def step(params: list[Tensor], optimizer: MoMoWrapper) -> None:
        for param in params:
            param.grad = param.detach() - 0.3
        optimizer.step(loss=1.0)

    params, optimizer = make()
    for _ in range(2):
        step(params, optimizer)
    params.append(torch.ones(3, dtype=torch.float64, requires_grad=True))
    bases: Any = optimizer.base
    bases.optimizers[1].add_param_group({"params": params[-1:]})
    step(params, optimizer)
    lrs = optimizer.effective_lrs()
    assert [lr.dtype for lr in lrs] == [torch.float64] * 3
    assert [float(lr) for lr in lrs] == [0.1, 0.1, 0.1]


def test_a_step_keeps_no_gradients() -> None:
    """They are freed by `zero_grad`, before the next forward pass."""
    for adapter in (None, ProposingAdapter()):

        def wrap(inner: Optimizer, adapter: Adapter | None = adapter) -> MoMoWrapper:
            return MoMoWrapper(inner, MoMo(), adapter=adapter)

        world = World(BASES["SGD"], wrap)
        world.step()
        world.step()
        references = [weakref.ref(p.grad) for p in world.params if p.grad is not None]
        world.optimizer.zero_grad()
        gc.collect()
        assert not [r for r in references if r() is not None], adapter


def test_parameters_can_be_swapped() -> None:
    """Nothing that is kept keeps torch from exchanging the tensors behind parameters."""
    for base in BASES.values():
        with block_elements(64):
            world = World(base, unbounded(base))
            world.step()
            world.step()
            for i, param in enumerate(world.params):
                param.grad = None
                other = torch.nn.Parameter(param.detach().clone())
                torch.utils.swap_tensors(param, other)
                del other
                assert world.params[i] is param
            world.step()


def test_frozen_parameters_in_between_do_not_round_the_model() -> None:
    """As the discriminator of a GAN while the generator is trained, saved just then."""
    worlds = [World(BASES["SGD"], lambda inner: MoMoWrapper(inner, Soft())) for _ in range(2)]
    for step in range(6):
        for world in worlds:
            world.step()
        for param in worlds[0].params:
            param.requires_grad_(False)
            param.grad = None
        worlds[0].optimizer.state_dict()
        if step == 3:
            worlds[0].optimizer.load_state_dict(worlds[0].optimizer.state_dict())
        for param in worlds[0].params:
            param.requires_grad_()
    assert worlds[0].thetas == worlds[1].thetas
    assert torch.equal(worlds[0].flat(), worlds[1].flat())
