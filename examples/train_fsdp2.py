"""fully_shard (FSDP2): parameters are cut over the processes, and a checkpoint is resumed.

    torchrun --standalone --nproc-per-node=2 examples/train_fsdp2.py

runs on CPUs, in a few seconds, and downloads nothing. The wrapper needs no other arguments than in
one process. Half way through, the run is saved with torch.distributed.checkpoint and goes on in a
model and an optimizer made afresh; the checkpoint could be loaded by any number of processes. The
script checks that the processes agree and that the network has learnt.
"""

from __future__ import annotations

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
TEST_IMAGES = 360


def load_data() -> tuple[TensorDataset, Tensor, Tensor]:
    """Return the data to train on, and images and labels to test with."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    training_data = TensorDataset(images[TEST_IMAGES:], labels[TEST_IMAGES:])
    return training_data, images[:TEST_IMAGES], labels[:TEST_IMAGES]


def make() -> tuple[nn.Module, MoMoWrapper]:
    """Return a network, cut over the ranks, and its optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    return model, MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))


def train(model: nn.Module, optimizer: MoMoWrapper, data: TensorDataset, first_epoch: int) -> None:
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(data)
    for epoch in range(first_epoch, first_epoch + EPOCHS):
        sampler.set_epoch(epoch)
        for images, labels in DataLoader(data, batch_size=32, sampler=sampler):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)


def snapshot(model: nn.Module, optimizer: MoMoWrapper) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def resumed(folder: str) -> tuple[nn.Module, MoMoWrapper]:
    """Return a new model and optimizer with what is saved in a folder."""
    model, optimizer = make()
    state = snapshot(model, optimizer)
    load(state, checkpoint_id=folder)
    parts = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
    set_state_dict(model, optimizer, **parts)
    return model, optimizer


def shared_folder() -> str:
    """Return a folder that rank 0 has made."""
    name = [tempfile.mkdtemp()] if dist.get_rank() == 0 else [""]
    dist.broadcast_object_list(name)
    return name[0]


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    training_data, test_images, test_labels = load_data()
    model, optimizer = make()
    train(model, optimizer, training_data, first_epoch=0)

    folder = shared_folder()
    save(snapshot(model, optimizer), checkpoint_id=folder)
    model, optimizer = resumed(folder)
    if dist.get_rank() == 0:
        shutil.rmtree(folder)
    train(model, optimizer, training_data, first_epoch=EPOCHS)

    # The ranks have different parts of the parameters, but took the same steps.
    assert optimizer.last_step is not None
    mine = torch.stack([optimizer.last_step.theta, optimizer.last_step.loss])
    everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyones, mine)
    assert all(torch.equal(other, mine) for other in everyones), "the ranks disagree"
    accuracy = float((model(test_images).argmax(dim=1) == test_labels).float().mean())
    assert accuracy > 0.9, f"test accuracy {accuracy:.3f}"
    if dist.get_rank() == 0:
        print(f"test accuracy {accuracy:.3f}, {dist.get_world_size()} ranks agree")
    dist.barrier()
    dist.destroy_process_group()
    # DTensor's caches keep the group, and gloo's threads, beyond this; one that waits for Python's
    # lock when the interpreter ends aborts the process. Here it gets the lock.
    time.sleep(1)


if __name__ == "__main__":
    main()
