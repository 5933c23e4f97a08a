"""DistributedDataParallel: two processes train one network, each on its own half of every batch.

    torchrun --standalone --nproc-per-node=2 examples/train_ddp.py

trains on CPUs, in a few seconds. There is nothing to set for MoMo: each process passes the loss of
its own part of the batch, the wrapper averages these losses, and all processes take the same step.
"""

import time

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, random_split

from momo_wrap import MoMoWrapper

dist.init_process_group("gloo")
torch.set_num_threads(1)
torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
dataset = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits))
train, test = random_split(dataset, [1437, 360])
sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(train)

network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
model = DistributedDataParallel(network)
optimizer = MoMoWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))

for epoch in range(20):
    sampler.set_epoch(epoch)
    for inputs, targets in DataLoader(train, batch_size=32, sampler=sampler):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)

inputs, targets = test[:]
accuracy = float((network(inputs).argmax(dim=1) == targets).float().mean())
parameters = torch.cat([param.detach().reshape(-1) for param in network.parameters()])
everyones = [torch.empty_like(parameters) for _ in range(dist.get_world_size())]
dist.all_gather(everyones, parameters)
assert all(torch.equal(other, parameters) for other in everyones), "the ranks disagree"
print(f"rank {dist.get_rank()}: test accuracy {accuracy:.3f}")
assert accuracy > 0.93
dist.destroy_process_group()
# Of gloo's threads, one that waits for Python's lock when the interpreter ends aborts the process.
time.sleep(1)
