"""The exact per-sample Fisher against a training pass, single-sample backward passes and chunked `vmap(grad)`.

    python benchmarks/curvature.py [--quick]

All sides alternate in one process; medians of ratios are printed beside their goals.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import curvature
from lifelong.data import load
from lifelong.errors import LifelongError

Batches = list[tuple[Tensor, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples and repetitions")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    inputs, targets = _samples(6_000 if arguments.quick else 60_000)
    repetitions = 3 if arguments.quick else 5
    mlp = [
        nn.Flatten(),
        nn.Linear(784, 1024),
        nn.ReLU(),
        nn.Linear(1024, 512),
        nn.ReLU(),
        nn.Linear(512, 256),
        nn.ReLU(),
    ]
    _compare("MLP 784-1024-512-256-10", nn.Sequential(*mlp, nn.Linear(256, 10)), inputs, targets, repetitions, 1.3)
    blocks: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        blocks += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32 * 49, 10))
    _compare("convolutional, batch norm", net, inputs[:10_000], targets[:10_000], repetitions, 4.0)


def _samples(count: int) -> tuple[Tensor, Tensor]:
    try:
        data = load("mnist").train
        return data.inputs[:count].float() / 255, data.targets[:count]
    except LifelongError:
        return torch.rand(count, 1, 28, 28), torch.randint(0, 10, (count,))


def _compare(name: str, net: nn.Sequential, inputs: Tensor, targets: Tensor, repetitions: int, goal: float) -> None:
    batches: Batches = list(zip(inputs.split(512), targets.split(512), strict=True))
    few = 128
    sides: dict[str, tuple[Callable[[], object], int]] = {
        "fisher": (lambda: curvature.fisher(net, net, batches, kind="empirical"), len(inputs)),
        "training pass": (lambda: _train(net, inputs, targets), len(inputs)),
        "single samples": (lambda: _loop(net, inputs[:few], targets[:few]), few),
        "vmap(grad)": (lambda: _vmap(net, inputs[: 4 * few], targets[: 4 * few]), 4 * few),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repetition in range(repetitions + 1):
        for side, (work, samples) in sides.items():
            begun = time.perf_counter()
            work()
            if repetition:  # the first warms up
                seconds[side].append((time.perf_counter() - begun) / samples)
    print(f"{name}, {len(inputs)} samples")

    def ratio(left: str, right: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[left], seconds[right], strict=True))

    print(f"  fisher / training pass       {ratio('fisher', 'training pass'):7.2f}  goal at most {goal}")
    print(f"  single samples / fisher      {ratio('single samples', 'fisher'):7.1f}  goal at least 30")
    print(f"  vmap(grad) / fisher          {ratio('vmap(grad)', 'fisher'):7.1f}  goal at least 10")
    exact = _loop(net, inputs[:few], targets[:few])
    found = curvature.fisher(net, net, [(inputs[:few], targets[:few])], kind="empirical")
    error = max(float((found[key] - exact[key]).norm() / exact[key].norm()) for key in exact if exact[key].any())
    print(f"  relative difference to loop  {error:.1e}  goal below 1e-5", flush=True)


def _train(net: nn.Sequential, inputs: Tensor, targets: Tensor) -> None:
    saved = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    for indices in torch.randperm(len(inputs)).split(128):
        loss = F.cross_entropy(net(inputs[indices]), targets[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.load_state_dict(saved)


def _loop(net: nn.Sequential, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    net.eval()
    parameters = dict(net.named_parameters())
    totals = {key: torch.zeros_like(value) for key, value in parameters.items()}
    for sample, target in zip(inputs.split(1), targets.split(1), strict=True):
        found = torch.autograd.grad(F.cross_entropy(net(sample), target), list(parameters.values()))
        for key, gradient in zip(totals, found, strict=True):
            totals[key] += gradient.square() / len(inputs)
    return totals


def _vmap(net: nn.Sequential, inputs: Tensor, targets: Tensor) -> None:
    net.eval()
    parameters = {key: value.detach() for key, value in net.named_parameters()}

    def loss(chosen: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        logits = torch.func.functional_call(net, chosen, (sample.unsqueeze(0),))
        return F.cross_entropy(logits, target.unsqueeze(0))

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    totals = {key: torch.zeros_like(value) for key, value in parameters.items()}
    for some, labels in zip(inputs.split(32), targets.split(32), strict=True):
        for key, gradient in each(parameters, some, labels).items():
            totals[key] += gradient.square().sum(0)


if __name__ == "__main__":
    main()
