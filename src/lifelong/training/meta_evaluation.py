"""How well a meta-learner adapts: scores over many tasks with an interval, at every step; calibration; time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lifelong import randomness
from lifelong.errors import DivergedError
from lifelong.meta.engine import Engine, answers
from lifelong.meta.episodes import Source
from lifelong.meta.learner import MetaLearner, Problem
from lifelong.tree import Params

# Tasks are drawn so many at a time, whatever the engine does, so that the same seed always gives the same ones.
_BATCH = 32
_BINS = 15


@dataclass(frozen=True)
class Adaptation:
    """What evaluation found.

    Args:
        score: mean over tasks (accuracy, or mean squared error) after 0, 1, 2, ... steps.
        interval: half the width of the 95 % interval of each, 1.96 standard errors over tasks.
        calibration: expected calibration error after each step, over all queries in 15 bins of equal width (Guo et al.
            2017, 1706.04599); empty for regression.
        tasks: how many.
        seconds_per_task: wall time of adapting a task and answering for its queries after every step.
    """

    score: list[float]
    interval: list[float]
    calibration: list[float]
    tasks: int
    seconds_per_task: float


def evaluate(
    algorithm: MetaLearner,
    problem: Problem,
    engine: Engine,
    meta: Params,
    buffers: Params,
    source: Source,
    *,
    tasks: int,
    seed: int,
    purpose: Literal["validation", "test"],
) -> Adaptation:
    """Return how well `meta` adapts to `tasks` tasks of `source`, the same ones for the same `seed` and `purpose`.

    Raises:
        DivergedError: a task's answers, or their score, are not finite numbers.
    """
    scores: list[Tensor] = []
    bins: Tensor | None = None
    spent, left, number = 0.0, tasks, 0
    while left > 0:
        episodes = source.draw(min(left, _BATCH), randomness.generator(seed, purpose, number))
        begun = time.perf_counter()
        outputs = answers(algorithm, problem, engine, meta, buffers, episodes)
        spent += time.perf_counter() - begun
        scores.append(torch.stack([source.score(each, episodes.query_targets) for each in outputs]))
        finite = torch.stack([each.isfinite().flatten(1).all(1) for each in outputs]) & scores[-1].isfinite()
        if not bool(finite.all()):
            raise _diverged(finite, f"{purpose} task", tasks - left, tasks, algorithm.pace())
        if not episodes.query_targets.is_floating_point():
            found = torch.stack([_binned(each, episodes.query_targets) for each in outputs])
            bins = found if bins is None else bins + found
        left, number = left - len(episodes), number + 1
    every = torch.cat(scores, 1).cpu().double()  # which Apple's GPUs do not have
    errors = every.std(1) / tasks**0.5 if tasks > 1 else torch.zeros(len(every))
    calibration = [] if bins is None else [_calibration_error(each) for each in bins]
    return Adaptation(every.mean(1).tolist(), (1.96 * errors).tolist(), calibration, tasks, spent / tasks)


def _diverged(finite: Tensor, kind: str, before: int, tasks: int, pace: str) -> DivergedError:
    """Return the error for the first task that fails of `finite` `[steps, tasks]`, which come after `before` others."""
    task = int((~finite.all(0)).nonzero()[0])
    step = int((~finite[:, task]).nonzero()[0])
    where = f"at inner step {step} with {pace}: try a smaller one, or fewer test_steps"
    return DivergedError(
        f"{kind} {before + task + 1} of {tasks} has answers that are not finite numbers, or too large to be judged, "
        + (where if step else "before any step of adaptation: try a smaller lr, or clip")
    )


def _binned(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return `[3, bins]`: by confidence, the number of answers, of right ones, and the sum of confidences."""
    confidence, answer = outputs.cpu().double().softmax(2).max(2)
    place = (confidence * _BINS).long().clamp(max=_BINS - 1).flatten()
    kinds = (torch.ones_like(confidence), (answer == targets.cpu()).double(), confidence)
    empty = confidence.new_zeros(_BINS)
    return torch.stack([empty.index_add(0, place, each.flatten()) for each in kinds])


def _calibration_error(bins: Tensor) -> float:
    count, right, confidence = bins
    return float((right - confidence).abs().sum() / count.sum())
