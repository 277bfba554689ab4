"""Small problems in float64 that every test of meta-learning may take."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from lifelong.meta import Episodes, Problem
from lifelong.meta.episodes import accuracy, cross_entropy, squared_error
from lifelong.meta.network import Formulation, task_network
from lifelong.tree import Params

WAYS = 3


def convnet(pool: bool = False, channels: int = 4) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for before in (1, channels):
        blocks += [
            nn.Conv2d(before, channels, 3, padding=1, stride=1 if pool else 2),
            nn.BatchNorm2d(channels),
            nn.Tanh() if not pool else nn.Softplus(),
        ]
        blocks += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def pictures(formulation: Formulation = "loop", *, pool: bool = False, seed: int = 0, **settings: str) -> Problem:
    torch.manual_seed(seed)
    trunk, head = convnet(pool).double(), nn.Linear(4, WAYS).double()
    for each in trunk.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.uniform_(each.weight, 0.5, 1.5)
            nn.init.normal_(each.bias)
    sample = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    network = task_network(trunk, head, sample, formulation=formulation, **settings)  # type: ignore[arg-type]
    return Problem(network, cross_entropy, accuracy, classes=10)


def picture_tasks(tasks: int = 3, shots: int = 2, queries: int = 3, seed: int = 1) -> Episodes:
    generator = torch.Generator().manual_seed(seed)

    def drawn(each: int) -> tuple[Tensor, Tensor]:
        inputs = torch.rand(tasks, WAYS * each, 1, 9, 9, generator=generator, dtype=torch.float64)
        return inputs, torch.arange(WAYS).repeat_interleave(each).expand(tasks, -1)

    classes = torch.stack([torch.randperm(10, generator=generator)[:WAYS] for _ in range(tasks)])
    return Episodes(*drawn(shots), *drawn(queries), classes)


def half_frozen() -> nn.Module:
    """Return a classifier of pictures of 8 x 8 pixels whose first layer is not trained."""
    first = nn.Linear(64, 16).requires_grad_(False)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 10))


def curves(hidden: int = 6, formulation: Formulation = "columns") -> Problem:
    torch.manual_seed(0)
    trunk = nn.Sequential(OrderedDict(first=nn.Linear(1, hidden), bend=nn.Tanh())).double()
    sample = torch.zeros(2, 1, dtype=torch.float64)
    network = task_network(trunk, nn.Linear(hidden, 1).double(), sample, formulation=formulation)
    return Problem(network, squared_error, squared_error)


def leaves(meta: Params) -> Params:
    return {name: each.clone().requires_grad_() for name, each in meta.items()}


def flat(tree: Params) -> Tensor:
    return torch.cat([each.flatten() for each in tree.values()])
