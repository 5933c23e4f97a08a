"""One training run, in one process or spread over several."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

from momo_wrap import MoMo, MoMoStar, MoMoWrapper, ProposingAdapter, TrustedMoMo
from momo_wrap.research import HeavyBall, PerGroup
from tests.distributed.parallel import (
    DTensor,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
    fully_shard,
)
from tests.releases import TORCH, Muon

BATCH = 16
UNEVEN = (5, 7, 3, 1)  # divisible neither by 2 nor by 4, and with tensors of fewer rows than ranks
EVEN = (5, 8, 3)
BOUND = 0.7  # the loss soon comes close to it

Parallelize = Callable[[nn.Module], nn.Module]
MakeOptimizer = Callable[[nn.Module], MoMoWrapper]


def build_model(widths: tuple[int, ...] = UNEVEN) -> nn.Module:
    """Return a network."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after, dtype=torch.float64), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Data:
    """Generated regression data."""

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(
            64, layers[0].in_features, generator=generator, dtype=torch.float64
        )
        self.targets = torch.randn(
            64, layers[-1].out_features, generator=generator, dtype=torch.float64
        )
        self.generator = generator

    def next_batch(self, part: int = 0, parts: int = 1) -> tuple[Tensor, Tensor]:
        """Draw the next batch, and return one of several equal parts of it."""
        rows = torch.randperm(64, generator=self.generator)[:BATCH].chunk(parts)[part]
        return self.inputs[rows], self.targets[rows]


def two_groups(model: nn.Module, lr: float) -> list[dict[str, object]]:
    """Return matrices and vectors, with learning rates and decays of their own."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.dim() > 1], "lr": lr},
        {"params": [p for p in params if p.dim() == 1], "lr": lr / 2, "weight_decay": 0.0},
    ]


def sgd(model: nn.Module) -> MoMoWrapper:
    return MoMoWrapper(SGD(two_groups(model, 0.3), momentum=0.9, weight_decay=1e-3), MoMo(BOUND))


def nesterov(model: nn.Module) -> MoMoWrapper:
    base = SGD(two_groups(model, 0.1), momentum=0.9, nesterov=True, weight_decay=1e-3)
    return MoMoWrapper(base, MoMoStar())


def adamw(model: nn.Module) -> MoMoWrapper:
    return MoMoWrapper(AdamW(two_groups(model, 0.1), weight_decay=1e-2), MoMo(BOUND))


def compiled_adamw(model: nn.Module) -> MoMoWrapper:
    """Wrap the same, with compiled passes."""
    base = AdamW(two_groups(model, 0.1), weight_decay=1e-2)
    return MoMoWrapper(base, MoMo(BOUND), compiled=True)


def adamw_star(model: nn.Module) -> MoMoWrapper:
    base = AdamW(two_groups(model, 0.1), weight_decay=1e-2)
    return MoMoWrapper(base, MoMoStar(), weight_decay_form="decoupled")


def per_group(model: nn.Module) -> MoMoWrapper:
    """Give each group a θ of its own."""
    base = SGD(two_groups(model, 0.3), momentum=0.9, weight_decay=1e-3)
    return MoMoWrapper(base, PerGroup(BOUND))


def proposing(model: nn.Module) -> MoMoWrapper:
    """Let the adapter keep an average of its own."""
    base = AdamW(two_groups(model, 0.1), weight_decay=1e-2)
    return MoMoWrapper(base, MoMo(BOUND), adapter=ProposingAdapter())


def proposing_momentum(model: nn.Module) -> MoMoWrapper:
    base = SGD(two_groups(model, 0.1), momentum=0.9, dampening=0.1)
    averaging = ProposingAdapter("momentum_buffer", beta=0.9)
    return MoMoWrapper(base, MoMoStar(), adapter=averaging)


def anchored(model: nn.Module) -> MoMoWrapper:
    """Take the model at an anchor that the parameters follow, and measure slopes along its move."""
    base = HeavyBall(two_groups(model, 1.0), momentum=0.7, weight_decay=1e-2)
    return MoMoWrapper(base, TrustedMoMo(BOUND, start=0.5), max_grad_norm=1.0)


def joint(model: nn.Module) -> MoMoWrapper:
    """Wrap two optimizers that are read in different ways."""
    matrices, vectors = two_groups(model, 1.0)
    bases = [SGD([matrices], momentum=0.9, dampening=0.9), AdamW([vectors])]
    return MoMoWrapper(bases, MoMo(BOUND), adapter=[ProposingAdapter(), None])


def muon(model: nn.Module) -> MoMoWrapper:
    """Wrap Muon for the matrices and AdamW for the rest."""
    matrices, vectors = two_groups(model, 0.1)
    bases = [Muon([matrices], weight_decay=1e-2), AdamW([vectors])]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "MoMoWrapper uses ProposingAdapter")
        return MoMoWrapper(bases, MoMo(BOUND))


def clipped(model: nn.Module) -> MoMoWrapper:
    """Clip gradients by their norm over all parameters, those on other ranks too."""
    base = SGD(two_groups(model, 0.3), momentum=0.9, weight_decay=1e-3)
    return MoMoWrapper(base, MoMo(BOUND), max_grad_norm=0.4)


OTHERWISE = (clipped, sgd, adamw, proposing)
UNCLIPPED = (
    sgd,
    nesterov,
    adamw,
    adamw_star,
    per_group,
    proposing,
    proposing_momentum,
    joint,
)
ELEMENTWISE = (clipped, anchored, *UNCLIPPED)
EVERY = (*ELEMENTWISE, muon) if TORCH >= (2, 9) else ELEMENTWISE


class Run(NamedTuple):
    """What came of a run: parameters by name, and θ and the mean loss of each step."""

    params: dict[str, Tensor]
    thetas: Tensor
    losses: Tensor


def train(
    model: nn.Module,
    optimizer: MoMoWrapper,
    steps: int,
    data: Data,
    part: int = 0,
    parts: int = 1,
) -> Run:
    """Train on one part of each batch."""
    thetas, losses = [], []
    for _ in range(steps):
        inputs, targets = data.next_batch(part, parts)
        # not mse_loss, whose gradient torch gets wrong where the batch is a DTensor
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        assert optimizer.last_step is not None
        thetas.append(optimizer.last_step.theta)
        losses.append(optimizer.last_step.loss)
    return Run(whole(model), torch.stack(thetas), torch.stack(losses))


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters, put together from the ranks."""
    return {
        name.removeprefix("module."): (p.full_tensor() if isinstance(p, DTensor) else p)
        .detach()
        .clone()
        for name, p in model.named_parameters()
    }


def train_alone(make: MakeOptimizer, steps: int, widths: tuple[int, ...] = UNEVEN) -> Run:
    """Train on whole batches in this process."""
    model = build_model(widths)
    return train(model, make(model), steps, Data(model))


def train_ddp(make: MakeOptimizer, steps: int) -> Run:
    """Train on this rank's part of each batch."""
    data = Data(model := build_model())
    replica = DistributedDataParallel(model)
    return train(replica, make(replica), steps, data, dist.get_rank(), dist.get_world_size())


def fully_sharded(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    """Cut each layer's parameters over the ranks, or over the last dimension of a mesh."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train_fsdp2(make: MakeOptimizer, steps: int) -> Run:
    """Train on this rank's part of each batch."""
    data = Data(model := build_model())
    fully_sharded(model)
    return train(model, make(model), steps, data, dist.get_rank(), dist.get_world_size())


def train_hsdp(make: MakeOptimizer, steps: int) -> Run:
    """Cut over pairs of ranks, and replicate the pairs."""
    data = Data(model := build_model())
    fully_sharded(model, init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts")))
    return train(model, make(model), steps, data, dist.get_rank(), dist.get_world_size())


COLWISE_THEN_ROWWISE = {"0": ColwiseParallel(), "2": RowwiseParallel()}


def train_partly_parallel(make: MakeOptimizer, steps: int) -> Run:
    """Cut the first layer over the ranks; the others are whole tensors."""
    data = Data(model := build_model(EVEN))
    plan: dict[str, ParallelStyle] = {"0": ColwiseParallel(output_layouts=Replicate())}
    parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), plan)
    return train(model, make(model), steps, data)


class DistributedData(Data):
    """Batches that are sharded over the ranks, so gradients are partial sums."""

    def next_batch(self, part: int = 0, parts: int = 1) -> tuple[Tensor, Tensor]:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        inputs, targets = super().next_batch()
        return (
            distribute_tensor(inputs, mesh, [Shard(0)]),
            distribute_tensor(targets, mesh, [Shard(0)]),
        )


def train_with_distributed_data(make: MakeOptimizer, steps: int) -> Run:
    """Leave everything to DTensor: parameters on all ranks, and the batch sharded over them."""
    data = DistributedData(model := build_model())
    distribute_module(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    return train(model, make(model), steps, data)


def train_tensor_parallel(make: MakeOptimizer, steps: int, dp: int, *, sharded: bool) -> Run:
    """Shard layers over pairs of ranks with the same data; over the pairs, replicate or shard."""
    data = Data(model := build_model(EVEN))
    mesh = init_device_mesh("cpu", (dp, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], COLWISE_THEN_ROWWISE)
    if sharded:
        # The output is a view, which no code changes here.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        fully_shard(model, mesh=mesh["dp"])
    return train(model, make(model), steps, data, mesh.get_local_rank("dp"), dp)


def distance(run: Run, reference: Run) -> float:
    """Return the largest difference of a parameter, and of θ or the loss at any step."""
    differences = [(run.params[n] - reference.params[n]).abs().max() for n in reference.params]
    differences += [(run.thetas - reference.thetas).abs().max()]
    differences += [(run.losses - reference.losses).abs().max()]
    return float(torch.stack(differences).max())


def share_cut(run: Run) -> float:
    """Return the share of steps whose length the model decided."""
    return float(((run.thetas > 0) & (run.thetas < 1)).double().mean())
