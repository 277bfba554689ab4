"""The loop of meta-training: what it keeps as the best."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from meta.problems import curves, flat, leaves

from lifelong.meta import MAML, Engine, Episodes, Sinusoids
from lifelong.training.meta_loop import Iteration, MetaSchedule, MetaTraining, Validated, ValidationDiverged, meta_train


@dataclass(frozen=True)
class WildAtFirst(Sinusoids):
    """Sinusoids of which the first batch is too high for its squared error to be a number."""

    drawn: list[Episodes] = field(default_factory=list)

    def draw(self, tasks: int, generator: torch.Generator) -> Episodes:
        episodes = super().draw(tasks, generator)
        self.drawn.append(episodes)
        return replace(episodes, query_targets=episodes.query_targets * 1e200) if len(self.drawn) == 1 else episodes


def test_a_look_that_diverges_is_no_end_and_never_the_best() -> None:
    problem, algorithm = curves(), MAML(rate=0.01, test_steps=1)
    meta = leaves(algorithm.parameters(problem))
    optimizer = torch.optim.SGD(meta.values(), lr=1e-3)
    training = MetaTraining(algorithm, problem, Engine("columns", 4), meta, {}, optimizer)
    schedule = MetaSchedule(3, 4, validate_every=1, validation_tasks=8, patience=2, lower_is_better=True)
    source, validation = Sinusoids(dtype=torch.float64), WildAtFirst(dtype=torch.float64)
    events = [*meta_train(training, source, schedule, validation)]
    assert [type(event) for event in events] == [ValidationDiverged, Iteration, *[Validated, Iteration] * 2]
    diverged, first, second = (event for event in events if not isinstance(event, Iteration))
    assert isinstance(diverged, ValidationDiverged)
    assert diverged.reason.startswith("validation task 1 of 8 has answers that are not finite numbers, or too large")
    assert isinstance(first, Validated)
    assert isinstance(second, Validated)
    assert first.best
    assert training.best == min(first.found.score[-1], second.found.score[-1])
    assert flat(training.meta).isfinite().all()
