"""The loop of meta-training: draw tasks, adapt to all of them, step on the mean meta-gradient, now and then look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch.optim import Optimizer

from lifelong import randomness, tree
from lifelong.errors import DivergedError
from lifelong.meta.engine import Engine, gradient
from lifelong.meta.episodes import Source
from lifelong.meta.learner import MetaLearner, Problem
from lifelong.training.meta_evaluation import Adaptation, evaluate
from lifelong.tree import Params

# Training tasks on which statistics for tests are measured.
_SETTLED = 32


@dataclass
class MetaTraining:
    """All that meta-training changes, and what it works with.

    Args:
        algorithm, problem, engine: what is computed, and how.
        meta: what is meta-learned, leaves that need a gradient.
        buffers: what the algorithm keeps besides.
        optimizer: moves `meta`.
        seed: of the tasks that are drawn.
        iteration: how many have been made.
        best: validation score of the best `meta` so far, with `best_meta` itself and its `best_buffers`; None and empty
            before any.
        waited: validations since.
    """

    algorithm: MetaLearner
    problem: Problem
    engine: Engine
    meta: Params
    buffers: Params
    optimizer: Optimizer
    seed: int = 0
    iteration: int = 0
    best: float | None = None
    best_meta: Params = field(default_factory=dict)
    best_buffers: Params = field(default_factory=dict)
    waited: int = 0


@dataclass(frozen=True)
class MetaSchedule:
    """How long and how fast.

    Args:
        iterations: meta-steps.
        tasks: of a meta-step.
        rate: factor on the outer learning rate as a function of the share of iterations done, or None.
        clip: greatest norm of the mean meta-gradient, or None.
        validate_every: iterations between two looks at validation tasks; 0 for none.
        validation_tasks: how many, the same ones each time.
        patience: looks without a better score after which training ends, or None.
        lower_is_better: of the score.
    """

    iterations: int
    tasks: int
    rate: Callable[[float], float] | None = None
    clip: float | None = None
    validate_every: int = 0
    validation_tasks: int = 200
    patience: int | None = None
    lower_is_better: bool = False


@dataclass(frozen=True)
class Iteration:
    """A meta-step has been made, on tasks of this mean query loss and score; state may be saved now."""

    iteration: int
    loss: float
    score: float


@dataclass(frozen=True)
class Validated:
    """Validation tasks have been looked at."""

    iteration: int
    found: Adaptation
    best: bool


@dataclass(frozen=True)
class ValidationDiverged:
    """Validation tasks have been looked at, and adapting to one of them did not stay finite."""

    iteration: int
    reason: str


MetaEvent: TypeAlias = Iteration | Validated | ValidationDiverged


def meta_train(
    training: MetaTraining, source: Source, schedule: MetaSchedule, validation: Source | None = None
) -> Iterator[MetaEvent]:
    """Train from where `training` stands, yielding what happens; afterwards `training.meta` is the best that was seen.

    The tasks of an iteration are a function of the seed and its number, so a state that is restored goes on to the same
    bits.

    Args:
        training: changed in place.
        source: of training tasks.
        schedule: how long and how fast.
        validation: tasks to choose the best by; without it, the last is kept.

    Raises:
        DivergedError: a task's loss is not a finite number.
    """
    groups = training.optimizer.param_groups
    for group in groups:
        group.setdefault("initial_lr", group["lr"])
    while training.iteration < schedule.iterations and not _patience_is_over(training, schedule):
        if schedule.rate is not None:
            for group in groups:
                group["lr"] = group["initial_lr"] * schedule.rate(training.iteration / schedule.iterations)
        made = _iterate(training, source, schedule)
        looked = _look(training, source, validation, schedule) if validation and _due(training, schedule) else None
        # Before it is said that the step is done, so that a state saved then has looked already.
        if looked is not None:
            yield looked
        yield made
    if training.best_meta:
        tree.copy_(training.meta, training.best_meta)
        training.buffers = training.best_buffers
    training.buffers = settled(training, source)


def settled(training: MetaTraining, source: Source) -> Params:
    """Return the buffers that tests need, with what is to be measured on tasks of `source`, the same ones each time."""
    drawn = source.draw(_SETTLED, randomness.generator(training.seed, "settled"))
    held = {name: each.detach() for name, each in training.meta.items()}
    asked = replace(training.problem, network=training.problem.network.answering)
    return training.algorithm.settled(asked, held, training.buffers, drawn)


def _iterate(training: MetaTraining, source: Source, schedule: MetaSchedule) -> Iteration:
    torch.manual_seed(randomness.derive(training.seed, "noise", training.iteration))  # of dropout, if there is any
    drawn = randomness.generator(training.seed, "tasks", training.iteration)
    found = gradient(
        training.algorithm,
        training.problem,
        training.engine,
        training.meta,
        training.buffers,
        source.draw(schedule.tasks, drawn),
        training.iteration,
    )
    tree.attach(training.meta, found.gradient)
    if schedule.clip is not None:
        torch.nn.utils.clip_grad_norm_(training.meta.values(), schedule.clip)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    training.buffers = found.buffers
    training.iteration += 1
    return Iteration(training.iteration, float(found.losses.mean()), float(found.scores.mean()))


def _look(
    training: MetaTraining, source: Source, validation: Source, schedule: MetaSchedule
) -> Validated | ValidationDiverged:
    training.waited += 1
    try:
        found = evaluate(
            training.algorithm,
            training.problem,
            training.engine,
            training.meta,
            settled(training, source),
            validation,
            tasks=schedule.validation_tasks,
            seed=training.seed,
            purpose="validation",
        )
    except DivergedError as error:
        # Training goes on: a start that is not yet one to adapt from, or takes more steps than it was trained for, may
        # become one. It is never the best; where patience ends training, it is a look that was no better.
        return ValidationDiverged(training.iteration, str(error))
    score = found.score[-1]
    better = training.best is None or (score < training.best if schedule.lower_is_better else score > training.best)
    if better:
        training.best, training.waited = score, 0
        training.best_meta, training.best_buffers = tree.snapshot(training.meta), tree.snapshot(training.buffers)
    return Validated(training.iteration, found, better)


def _due(training: MetaTraining, schedule: MetaSchedule) -> bool:
    if schedule.validate_every == 0:
        return False
    return training.iteration % schedule.validate_every == 0 or training.iteration == schedule.iterations


def _patience_is_over(training: MetaTraining, schedule: MetaSchedule) -> bool:
    return schedule.patience is not None and training.waited >= schedule.patience
