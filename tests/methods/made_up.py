"""Random tasks and a small network in float64, for comparing methods with slow references."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lifelong.models import Network, with_head
from lifelong.streams import Scenario, Split, Stream, Task


def stream(
    scenario: Scenario,
    tasks: int = 3,
    *,
    samples: int,
    features: int,
    classes: int = 3,
    draw: Callable[..., Tensor] = torch.randn,
    in_turn: bool = False,
) -> Stream:
    """Return tasks of random samples, the same for training and testing; none for validation.

    Args:
        scenario: classes have new numbers in each task where it is class-incremental.
        tasks: how many.
        samples: of each task.
        features: of each sample.
        classes: of each task.
        draw: of `[samples, features]` inputs.
        in_turn: classes take turns, and are not random.
    """
    torch.manual_seed(7)
    made = []
    for index in range(tasks):
        offset = index * classes if scenario is Scenario.CLASS else 0
        inputs = draw(samples, features, dtype=torch.float64)
        targets = torch.arange(samples) % classes if in_turn else torch.randint(classes, (samples,))
        split = Split(inputs, targets + offset)
        own = tuple(range(offset, offset + classes))
        made.append(Task(index, f"task {index}", split, split.take(torch.arange(0)), split, own))
    names = tuple(str(label) for label in range(classes * (tasks if scenario is Scenario.CLASS else 1)))
    return Stream("made up", "random", scenario, tuple(made), names)


def network(
    scenario: Scenario, trunk: Callable[[], nn.Module], *, features: int, classes: int = 3, tasks: int = 3
) -> Network:
    """Return the network that `trunk` makes, with the head of the scenario, always of the same weights."""
    torch.manual_seed(8)
    made = with_head(
        trunk(),
        {Scenario.DOMAIN: "single", Scenario.TASK: "multi", Scenario.CLASS: "growing"}[scenario],  # type: ignore[arg-type]
        sample=torch.zeros(2, features),
        classes=(classes,) * tasks,
        outputs=classes,
    )
    if scenario is not Scenario.DOMAIN:
        block = made.head.block
        made.head.block = lambda index, count: block(index, count).double()
    return made.double()
