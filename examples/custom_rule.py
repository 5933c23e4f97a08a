"""A step rule of one's own against MoMo: test loss of Adam on handwritten digits, in 20 s."""

from collections.abc import Mapping

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from momo_wrap import ModelStats, MoMo, MoMoWrapper, StepDecision, StepRule
from momo_wrap.rules import truncate


class SlowRise(StepRule):
    """MoMo whose θ falls at once, but rises no faster than its running average, from 0 on."""

    weight = 0.1  # of the last θ in the average; with 1, this is MoMo

    def initial_memory(self, lower_bound: float) -> dict[str, float]:
        return {"average": 0.0}

    def __call__(self, stats: ModelStats, memory: Mapping[str, Tensor]) -> StepDecision:
        theta, uncapped = truncate(stats, stats.lower_bound)
        average = torch.lerp(memory["average"], theta, self.weight)
        theta = torch.minimum(theta, average)
        return StepDecision(theta, uncapped, stats.lower_bound, {"average": average})


def test_loss(rule: StepRule, lr: float, seed: int, inputs: Tensor, labels: Tensor) -> float:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = MoMoWrapper(torch.optim.Adam(model.parameters(), lr=lr), rule)
    for batch in [batch for _ in range(3) for batch in torch.randperm(1400).split(64)]:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
        loss.backward()
        optimizer.step(loss=loss)
    return nn.functional.cross_entropy(model(inputs[1400:]), labels[1400:]).item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    data = torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(digits)[order]
    for lr in (0.01, 0.1, 1.0, 10.0):
        rules = (MoMo(), SlowRise())
        momo, slow = (sum(test_loss(rule, lr, s, *data) for s in range(16)) / 16 for rule in rules)
        print(f"lr {lr:5}: mean test loss {momo:.3f} with MoMo, {slow:.3f} with SlowRise")
        # It pays where lr is far too large, and costs where it is not.
        assert slow < 0.97 * momo if lr >= 1.0 else slow > momo or lr > 0.01
