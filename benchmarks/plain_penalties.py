"""Split MNIST with EWC, SI or nothing in a plain loop that shares no code with the methods: a yardstick for ours.

    python benchmarks/plain_penalties.py ewc domain --strength 1e10 --seed 0

The protocol of van de Ven, Tuytelaars & Tolias 2022: MLP 2x400, 5 tasks of 2,000 steps of 128 samples, one Adam at
1e-3. Autograd goes through the penalty, which is a sum over tasks, as their text has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import data

Trees = list[tuple[list[Tensor], list[Tensor]]]


def main() -> None:
    """Train and print the accuracy of each task after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=("none", "ewc", "si"))
    parser.add_argument("scenario", choices=("domain", "class"))
    parser.add_argument("--strength", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    mnist = data.load("mnist")
    train, test = ((each.inputs.float().flatten(1) / 255, each.targets) for each in (mnist.train, mnist.test))
    outputs = 10 if given.scenario == "class" else 2
    network = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, outputs))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    weights = list(network.parameters())
    held: Trees = []
    omega = [torch.zeros_like(each) for each in weights]
    for task in range(5):
        seen = 2 * (task + 1) if given.scenario == "class" else 2
        inputs, targets = of_task(train, task, outputs)
        path = [torch.zeros_like(each) for each in weights]
        start = copied(weights)
        for batch in batches(len(inputs)):
            loss = F.cross_entropy(network(inputs[batch])[:, :seen], targets[batch])
            for importance, centre in held:
                terms = [(f * (w - c) ** 2).sum() for f, w, c in zip(importance, weights, centre, strict=True)]
                loss = loss + given.strength * torch.stack(terms).sum() * (0.5 if given.method == "ewc" else 1)
            optimizer.zero_grad()
            loss.backward()
            before = copied(weights)
            optimizer.step()
            for each, weight, old in zip(path, weights, before, strict=True):
                each.sub_(weight.grad * (weight.detach() - old))
        if given.method == "ewc":
            held.append((fisher(network, inputs, seen), copied(weights)))
        if given.method == "si":
            for total, each, weight, old in zip(omega, path, weights, start, strict=True):
                total.add_(each / ((weight.detach() - old) ** 2 + 0.1))
            held = [(omega, copied(weights))]
        right = [correct(network, *of_task(test, each, outputs), seen) for each in range(5)]
        print(f"after task {task + 1}:", *(f"{100 * each.mean():.1f}" for each in right), flush=True)
    average = torch.cat(right).mean() if given.scenario == "class" else torch.stack([r.mean() for r in right]).mean()
    print(f"average accuracy {100 * average:.2f} %")


def of_task(samples: tuple[Tensor, Tensor], task: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of the two digits of `task`."""
    inputs, targets = samples
    rows = targets // 2 == task
    return inputs[rows], targets[rows] % outputs


def batches(samples: int) -> Iterator[Tensor]:
    """Yield the indices of 2,000 batches of 128, each sample once before any comes again."""
    order, at = torch.randperm(samples), 0
    for _ in range(2000):
        if at + 128 > samples:
            order, at = torch.randperm(samples), 0
        yield order[at : at + 128]
        at += 128


def copied(weights: list[nn.Parameter]) -> list[Tensor]:
    """Return copies that do not learn."""
    return [each.detach().clone() for each in weights]


@torch.no_grad()
def fisher(network: nn.Sequential, inputs: Tensor, seen: int) -> list[Tensor]:
    """Return the diagonal Fisher information of the three layers, with all labels weighed by the network."""
    second, last = network[2], network[4]
    total = [torch.zeros_like(each) for each in network.parameters()]
    for some in inputs.split(500):
        one = network[:2](some)
        two = network[2:4](one)
        shares = last(two)[:, :seen].softmax(1)
        shares = F.pad(shares, (0, last.out_features - seen))
        for label in range(seen):
            slope = shares - F.one_hot(torch.tensor(label), last.out_features)
            to_two = (slope @ last.weight) * (two > 0)
            to_one = (to_two @ second.weight) * (one > 0)
            weight = shares[:, label : label + 1]
            for index, (to, from_) in enumerate(((to_one, some), (to_two, one), (slope, two))):
                squares = to.square() * weight
                total[2 * index] += squares.T @ from_.square()
                total[2 * index + 1] += squares.sum(0)
    return [each / len(inputs) for each in total]


@torch.no_grad()
def correct(network: nn.Module, inputs: Tensor, targets: Tensor, seen: int) -> Tensor:
    """Return 1 for each sample that is answered rightly, else 0."""
    return (network(inputs)[:, :seen].argmax(1) == targets).float()


if __name__ == "__main__":
    main()
