"""Fine-tuning with task labels in a plain loop: outputs in a layer for each task, or all in one layer.

    python benchmarks/output_layers.py split one --seeds 5
    python benchmarks/output_layers.py split each --seeds 5

The protocols of van de Ven & Tolias, one Adam for all tasks. In both, a task trains its own outputs and answers with
them. But where all are in one layer Adam has counted its steps from the first task on, so that nothing corrects the
averages of outputs that have had no gradient until then, and their first hundred steps are three to six times as large;
and the outputs of old tasks go on by their momentum.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import data

Samples = tuple[Tensor, Tensor]


class Network(nn.Module):
    """Two hidden layers, and outputs of which each task has its own."""

    def __init__(self, inputs: int, width: int, tasks: int, classes: int, one: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.classes, self.one = classes, one
        sizes = [tasks * classes] if one else [classes] * tasks
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(self, inputs: Tensor, task: int) -> Tensor:
        features = self.trunk(inputs)
        if self.one:
            return self.heads[0](features)[:, task * self.classes : (task + 1) * self.classes]
        return self.heads[task](features)


def main() -> None:
    """Train with each seed and print the mean accuracy at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stream", choices=("split", "permuted"))
    parser.add_argument("layers", choices=("each", "one"))
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    reached = []
    for seed in range(given.seeds):
        torch.manual_seed(seed)
        tasks = split() if given.stream == "split" else permuted()
        reached.append(100 * trained(tasks, given.stream == "split", given.layers == "one"))
        print(f"seed {seed}: {reached[-1]:.2f} %", flush=True)
    if len(reached) > 1:
        half = stats.sem(reached) * stats.t.ppf(0.975, len(reached) - 1)
        print(f"mean {sum(reached) / len(reached):.2f} +- {half:.2f} %")


def split() -> list[tuple[Samples, Samples]]:
    """Return training and test samples of five tasks of two digits, dealt at random."""
    mnist = data.load("mnist")
    found = []
    for digits in torch.randperm(10).view(5, 2):
        parts = []
        for samples in (mnist.train, mnist.test):
            rows = torch.isin(samples.targets, digits)
            inputs = samples.inputs[rows].float().flatten(1) / 255
            parts.append((inputs, (samples.targets[rows] == digits[1]).long()))
        found.append((parts[0], parts[1]))
    return found


def permuted() -> list[tuple[Samples, Samples]]:
    """Return training and test samples of ten orders of the pixels of images with a border of two."""
    mnist = data.load("mnist")
    padded = [(F.pad(each.inputs, (2, 2, 2, 2)).flatten(1), each.targets) for each in (mnist.train, mnist.test)]
    found = []
    for _ in range(10):
        order = torch.randperm(1024)
        first, second = ((inputs[:, order], targets) for inputs, targets in padded)
        found.append((first, second))
    return found


def trained(tasks: list[tuple[Samples, Samples]], is_split: bool, one: bool) -> float:
    """Return the mean accuracy over tasks after all have been learned, 0..1."""
    width, steps, rate = (400, 2000, 1e-3) if is_split else (1000, 5000, 1e-4)
    network = Network(tasks[0][0][0].shape[1], width, len(tasks), 2 if is_split else 10, one)
    optimizer = torch.optim.Adam(network.parameters(), rate, fused=True)
    for task, ((inputs, targets), _) in enumerate(tasks):
        for batch in batches(len(targets), steps):
            optimizer.zero_grad()
            F.cross_entropy(network(scaled(inputs[batch]), task), targets[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        answers = [(network(scaled(inputs), task).argmax(1), right) for task, (_, (inputs, right)) in enumerate(tasks)]
    return float(torch.stack([(answer == right).float().mean() for answer, right in answers]).mean())


def scaled(inputs: Tensor) -> Tensor:
    """Return bytes on the scale 0..1."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs


def batches(samples: int, steps: int) -> Iterator[Tensor]:
    """Yield the indices of `steps` batches of 128, each sample once before any comes again."""
    order, at = torch.randperm(samples), 0
    for _ in range(steps):
        if at + 128 > samples:
            order, at = torch.randperm(samples), 0
        yield order[at : at + 128]
        at += 128


if __name__ == "__main__":
    main()
