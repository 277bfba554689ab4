"""What a learner answers rightly, on samples that it did not learn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lifelong import losses
from lifelong.curvature.per_sample import evaluating
from lifelong.learner import Learner
from lifelong.methods.method import Method
from lifelong.streams.task import Split, Task

# The matrix products of a forward pass alone are at their fastest from about a thousand rows.
BATCH = 1024


def accuracy(learner: Learner, method: Method, task: Task, split: Split, among: Sequence[int] | None = None) -> float:
    """Return the share, 0..1, of `split` that `method` answers rightly; for a number R^2, 0 where it is below.

    Arguments as for `score`.
    """
    return max(0.0, score(learner, method, task, split, among))


def score(learner: Learner, method: Method, task: Task, split: Split, among: Sequence[int] | None = None) -> float:
    """Return how well `method` answers for `split` when the sample's task is `task`: see `lifelong.losses.score`.

    Args:
        learner: put in evaluation mode meanwhile, and back.
        task: only where the scenario tells the task does it enter the answer.
        split: `ready` or not; at least one sample.
        among: the classes that may be answered; all that are known by default.
    """
    with evaluating(learner.model), torch.inference_mode(), learner.precision():
        pairs = split.ready(learner.device).batches(BATCH)
        answers = ((_answer(learner, method, inputs, task.index), targets) for inputs, targets in pairs)
        return losses.score((_only(logits, among), targets) for logits, targets in answers)


def _only(logits: Tensor, among: Sequence[int] | None) -> Tensor:
    """Return `logits` `[batch, classes]` with -inf for all but `among`."""
    if among is None or logits.shape[1] == 0:
        return logits
    others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    others[list(among)] = False
    return logits.masked_fill(others, -torch.inf)


def needs_task_id(learner: Learner, method: Method, tasks: tuple[Task, ...], samples: int = 256) -> bool:
    """Return whether answers change when another task is named for the same inputs: measured, on a few test samples."""
    task = tasks[0]
    inputs, _ = next(task.test.take(torch.arange(min(samples, len(task.test)))).ready(learner.device).batches(samples))
    with evaluating(learner.model), torch.inference_mode(), learner.precision():
        answers = [_answer(learner, method, inputs, other.index) for other in (task, tasks[-1])]
    return answers[0].shape != answers[1].shape or not torch.equal(*answers)


def _answer(learner: Learner, method: Method, inputs: Tensor, task: int) -> Tensor:
    return method.restrict(learner, inputs, method.logits(learner, inputs, task))
