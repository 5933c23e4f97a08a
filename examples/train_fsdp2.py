"""fully_shard (FSDP2): parameters are cut over the processes, and a checkpoint is resumed.

    torchrun --standalone --nproc-per-node=2 examples/train_fsdp2.py

trains on CPUs, in a few seconds. There is nothing to set for MoMo. Half way through, the run is
saved and goes on in a new model and optimizer; any number of processes could load the checkpoint.
"""

import shutil
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from momo_wrap import MoMoWrapper

EPOCHS = 10  # before the checkpoint, and again after it


def make() -> tuple[nn.Module, MoMoWrapper]:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    for layer in (model[0], model[2], model):
        fully_shard(layer)
    return model, MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))


def train(model: nn.Module, optimizer: MoMoWrapper, data: TensorDataset, first_epoch: int) -> None:
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(data)
    for epoch in range(first_epoch, first_epoch + EPOCHS):
        sampler.set_epoch(epoch)
        for inputs, targets in DataLoader(data, batch_size=32, sampler=sampler):
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)


def state_of(model: nn.Module, optimizer: MoMoWrapper) -> dict[str, Any]:
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


dist.init_process_group("gloo")
torch.set_num_threads(1)
torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
inputs, targets = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
data = TensorDataset(inputs[360:], targets[360:])

model, optimizer = make()
train(model, optimizer, data, first_epoch=0)
folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
dist.broadcast_object_list(folder)
save(state_of(model, optimizer), checkpoint_id=folder[0])

model, optimizer = make()
state = state_of(model, optimizer)
load(state, checkpoint_id=folder[0])
set_state_dict(
    model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
)
train(model, optimizer, data, first_epoch=EPOCHS)

accuracy = float((model(inputs[:360]).argmax(dim=1) == targets[:360]).float().mean())
print(f"rank {dist.get_rank()}: test accuracy {accuracy:.3f}")
assert accuracy > 0.9
dist.barrier()
if dist.get_rank() == 0:
    shutil.rmtree(folder[0])
dist.destroy_process_group()
# DTensor's caches keep the group, and gloo's threads, beyond this; one that waits for Python's lock
# when the interpreter ends aborts the process.
time.sleep(1)
