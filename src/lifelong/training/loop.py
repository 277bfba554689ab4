"""The only continual training loop; it yields events and knows nothing of who watches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lifelong import losses, randomness
from lifelong.errors import DivergedError
from lifelong.learner import Batch, Learner, grow, renew_optimizer, train_mode, train_these
from lifelong.methods.method import Method
from lifelong.streams.task import Split, Stream, Task

# On an accelerator reading the loss waits for the queue of kernels, so it is looked at only so often.
_LOOK_EVERY = 50


@dataclass(frozen=True)
class Schedule:
    """How long and how fast each task is learned.

    Args:
        batch_size: samples a step.
        epochs: passes over the training data of a task.
        steps: steps a task, instead of epochs, or None.
        rate: factor on the learning rate from the share of the task's steps that are done, or None for 1.
        clip: greatest Euclidean norm of the whole gradient, or None.
        keep_optimizer: moments and momentum go on from task to task instead of starting afresh.
        augment: what is done by chance to inputs as they are stored, new and replayed ones, or None.
    """

    batch_size: int = 128
    epochs: int = 1
    steps: int | None = None
    rate: Callable[[float], float] | None = None
    clip: float | None = None
    keep_optimizer: bool = False
    augment: Callable[[Tensor], Tensor] | None = None

    def total_steps(self, samples: int) -> int:
        """Return the number of steps for a task of `samples`."""
        if samples == 0:
            return 0
        return self.steps if self.steps is not None else self.epochs * batches_per_epoch(samples, self.batch_size)


@dataclass(frozen=True)
class TaskStarted:
    """A task's data and optimiser are ready, at its first step or where training is resumed.

    `steps` is their number for the task, `old_samples` how many training samples of earlier tasks it reads.
    """

    task: Task
    steps: int
    old_samples: int


@dataclass(frozen=True)
class Step:
    """A step has been made and `learner.clock` counts it, so state may be saved now.

    Not where `epoch_ends`: `EpochDone` follows, and who resumes from here would never hear of it.
    """

    task: Task
    loss: Tensor
    logits: Tensor
    targets: Tensor
    epoch_ends: bool

    def accuracy(self) -> float | None:
        """Return the share of the batch that was answered rightly before the step; None where no sample has a class."""
        labelled = ~losses.predict_numbers(self.logits, self.targets)
        right = (self.logits.argmax(1) == self.targets)[labelled]
        return float(right.float().mean()) if len(right) else None


@dataclass(frozen=True)
class EpochDone:
    """All training samples of the task have been seen once more; `learner.clock.stop_task = True` ends the task."""

    task: Task
    epoch: int


@dataclass(frozen=True)
class StepsDone:
    """No step of the task is left; the method consolidates next."""

    task: Task


@dataclass(frozen=True)
class TaskDone:
    """The method has consolidated, and `learner.clock` stands before the next task."""

    task: Task


Event: TypeAlias = TaskStarted | Step | EpochDone | StepsDone | TaskDone


def train(learner: Learner, method: Method, stream: Stream, schedule: Schedule) -> Iterator[Event]:
    """Take `learner` through the tasks of `stream` from where its clock stands, yielding what happens.

    The batch of a step is a function of the learner's seed, the task and the step, so a learner and a method restored
    from a checkpoint go on to the same bits.

    Args:
        learner: changed in place.
        method: its hooks run in the order that `Method` names.
        stream: tasks to learn.
        schedule: how long and how fast.

    Raises:
        DivergedError: the loss is not a finite number.
    """
    if learner.clock.task == 0 and learner.clock.step == 0:
        method.setup(learner)
    while learner.clock.task < len(stream):
        task = stream.tasks[learner.clock.task]
        if learner.clock.step == 0:
            grow(learner, task)
            method.before_task(learner, task)
            train_these(learner, method.trainable(learner))
            renew_optimizer(learner, schedule.keep_optimizer)
        # Where nothing learns, as before a fixed head, the network answers as it is.
        data = method.data(learner, stream.tasks[: task.index + 1]) if learner.trained else None
        learner.clock.steps = schedule.total_steps(len(data)) if data is not None else 0
        yield TaskStarted(task, learner.clock.steps, _old_samples(data, task))
        if data is not None and not learner.clock.stop_task:
            yield from _steps(learner, method, task, data, schedule)
        yield StepsDone(task)
        # Consolidation has gradients of its own and needs the room.
        learner.optimizer.zero_grad(set_to_none=True)
        method.after_task(learner, task)
        learner.clock.task, learner.clock.step, learner.clock.epoch = task.index + 1, 0, 0
        learner.clock.stop_task = False
        yield TaskDone(task)


def batches_per_epoch(samples: int, batch_size: int) -> int:
    """Return how many batches hold `samples`; a last batch of one joins none, as normalisation cannot train on it."""
    whole, rest = divmod(samples, batch_size)
    return whole + (1 if rest > 1 or (rest == 1 and whole == 0) else 0)


def _old_samples(data: Split | None, task: Task) -> int:
    return 0 if data is None or data.tasks is None else int((data.tasks != task.index).sum())


def _steps(learner: Learner, method: Method, task: Task, data: Split, schedule: Schedule) -> Iterator[Event]:
    clock, device, steps = learner.clock, learner.device, learner.clock.steps
    per_epoch = batches_per_epoch(len(data), schedule.batch_size)
    groups = learner.optimizer.param_groups
    for group in groups:
        # Kept in the optimiser's state: a run resumed in mid-schedule must know the rate that the factor belongs to.
        group.setdefault("initial_lr", group["lr"])
    while clock.step < steps and not clock.stop_task:
        clock.epoch, first = divmod(clock.step, per_epoch)
        drawn = randomness.generator(learner.seed, "order", task.index, clock.epoch)
        order = torch.randperm(len(data), generator=drawn)
        train_mode(learner.model)
        for indices in order.to(device).split(schedule.batch_size)[first:per_epoch]:
            if schedule.rate is not None:
                for group in groups:
                    group["lr"] = group["initial_lr"] * schedule.rate(clock.step / steps)
            loss, logits, targets = _step(learner, method, task, data, indices, schedule)
            yield Step(task, loss, logits, targets, clock.step % per_epoch == 0)
            if clock.step == steps:
                break
        if clock.step % per_epoch == 0:
            yield EpochDone(task, clock.epoch)


def _step(
    learner: Learner, method: Method, task: Task, data: Split, indices: Tensor, schedule: Schedule
) -> tuple[Tensor, Tensor, Tensor]:
    raw, targets = data.inputs.index_select(0, indices), data.targets.index_select(0, indices)
    where = task.index if data.tasks is None else data.tasks[indices]
    augment = schedule.augment
    scaled = data.scaled if augment is None else lambda inputs: data.scaled(augment(inputs))
    batch = method.batch(learner, Batch(scaled(raw), targets, where, raw, scaled))
    with learner.precision():
        logits = method.forward(learner, batch)
        loss = method.loss(learner, batch, logits, losses.task_loss(logits, batch.targets))
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    method.after_backward(learner)
    method.before_step(learner)
    if schedule.clip is not None:
        torch.nn.utils.clip_grad_norm_(learner.trained.values(), schedule.clip)
    learner.optimizer.step()
    method.after_step(learner)
    learner.clock.step += 1
    learner.clock.total_steps += 1
    detached = loss.detach()
    if detached.device.type == "cpu" or learner.clock.step % _LOOK_EVERY == 0:
        check_finite(detached, learner, method, task)
    return detached, logits.detach(), batch.targets


def check_finite(loss: Tensor, learner: Learner, method: Method, task: Task) -> None:
    """Raise `DivergedError` unless `loss`, 0-d, is a finite number."""
    if not math.isfinite(loss.item()):
        raise DivergedError(
            f"the loss is {loss.item()} at step {learner.clock.step} of task {task.index + 1} ({task.name}): "
            f"{method.against_divergence}"
        )
