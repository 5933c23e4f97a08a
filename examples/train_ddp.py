"""DistributedDataParallel: two processes train one network, each on its own half of every batch.

    torchrun --standalone --nproc-per-node=2 examples/train_ddp.py

runs on CPUs, in a few seconds, and downloads nothing. There is nothing to set for MoMo: each
process passes the loss of its own part of the batch, the wrapper averages these losses, and all
processes take the same step. The script checks that they do, and that the network has learnt.
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from momo_wrap import MoMoWrapper

EPOCHS = 20
TEST_IMAGES = 360


def load_data() -> tuple[TensorDataset, Tensor, Tensor]:
    """Return the data to train on, and images and labels to test with."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    training_data = TensorDataset(images[TEST_IMAGES:], labels[TEST_IMAGES:])
    return training_data, images[:TEST_IMAGES], labels[:TEST_IMAGES]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    training_data, test_images, test_labels = load_data()
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(training_data)
    batches = DataLoader(training_data, batch_size=32, sampler=sampler)

    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model = DistributedDataParallel(network)
    optimizer = MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for images, labels in batches:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)

    # Parameters and the last step are equal on all ranks, to the last bit.
    assert optimizer.last_step is not None
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    mine = torch.cat([flat, optimizer.last_step.theta.reshape(1)])
    everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyones, mine)
    assert all(torch.equal(other, mine) for other in everyones), "the ranks disagree"
    accuracy = float((model(test_images).argmax(dim=1) == test_labels).float().mean())
    assert accuracy > 0.9, f"test accuracy {accuracy:.3f}"
    if dist.get_rank() == 0:
        print(f"test accuracy {accuracy:.3f}, {dist.get_world_size()} ranks agree")
    dist.barrier()
    dist.destroy_process_group()
    # Of gloo's threads, one that waits for Python's lock when the interpreter ends aborts the
    # process. Here it gets the lock.
    time.sleep(1)


if __name__ == "__main__":
    main()
