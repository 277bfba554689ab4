"""What numbers below 1e-38 cost a step of Adam, and what a run spares by taking them for zero.

python benchmarks/denormals.py

Two MLPs 1024-1000-1000-10 learn batches of 128 in which 400 inputs are zero, after some in which others were, as a new
permutation of images with a border has it; one of them with such numbers taken for zero. Both in turn, one thread.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 100


def main() -> None:
    """Print the milliseconds of a step, and of Adam in it, on both sides: medians over the last ten chunks."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    first, second, targets = torch.rand(128, 1024), torch.rand(128, 1024), torch.randint(10, (128,))
    first[:, :400] = 0
    second[:, 600:] = 0
    sides = {flush: learner() for flush in (False, True)}
    taken: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for chunk in range(20):
        for flush, (network, optimizer) in sides.items():
            torch.set_flush_denormal(flush)
            taken[flush].append(seconds(network, optimizer, second if chunk else first, targets))
    for place, what in enumerate(("a step", "Adam in it")):
        slow, fast = (1000 / STEPS * median(each[place] for each in taken[flush][10:]) for flush in (False, True))
        print(f"{what}: {slow:.1f} ms with such numbers, {fast:.1f} ms without, {slow / fast:.2f} times as long")


def learner() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a network and its optimiser."""
    layers = [nn.Linear(1024, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10)]
    network = nn.Sequential(*layers)
    return network, torch.optim.Adam(network.parameters(), 1e-4, fused=True)


def seconds(
    network: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor
) -> tuple[float, float]:
    """Return how long `STEPS` steps take, and Adam in them."""
    begun, in_adam = time.perf_counter(), 0.0
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), targets).backward()
        ready = time.perf_counter()
        optimizer.step()
        in_adam += time.perf_counter() - ready
    return time.perf_counter() - begun, in_adam


if __name__ == "__main__":
    main()
