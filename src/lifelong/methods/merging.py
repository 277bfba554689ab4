"""What the methods share that learn task after task and answer with a merge of the weights after each."""

from __future__ import annotations

import copy
import re
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lifelong import randomness, tree
from lifelong.curvature.per_sample import evaluating
from lifelong.errors import InputError
from lifelong.learner import Batch, Learner, freeze, start_over
from lifelong.losses import task_loss
from lifelong.memory import Buffer
from lifelong.merging.batch_norm import reestimate
from lifelong.merging.collect import holding
from lifelong.merging.incremental import Incremental
from lifelong.merging.pool import MANIFEST, Pool, fingerprint
from lifelong.methods import routes, samples
from lifelong.methods.class_means import ClassMeans
from lifelong.methods.distilled import distilled
from lifelong.methods.method import Method, state
from lifelong.methods.routes import Routes
from lifelong.models import Network
from lifelong.models.heads import MultiHead
from lifelong.models.pretrained.adapters import fold, mergeable
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Split, Task
from lifelong.tree import Params

# Samples of a step of distillation.
_DISTILLED = 64

HeadMerge = Literal["auto", "merged", "apart", "fixed"]


@dataclass
class Merging(Method):
    """Abstract: train each task, merge what it changed into what was merged before, answer with the merge.

    `base` are the weights that the run began with, theta_0; the weights after a task are its expert, theta_t. The
    network itself stays the last expert: sequential training goes on from it, or where it stays apart from the one
    before, independent training goes back to the base. Until the first task is over, and within a task, the network
    itself answers. With `distill_epochs` the merge then learns, on the samples of the task, what its expert answers and
    what the merge before it answers for earlier tasks, or where outputs are shared what it answers itself as it is
    made; the experts stay as they are, so the next merge begins without it.

    A method of this kind says how experts are kept (`begun`), and perhaps what becomes of them (`combined`).
    """

    family: ClassVar[str] = "merging"
    makes_loss: ClassVar[bool] = True
    freezes: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    regression: ClassVar[bool] = True

    training: Literal["sequential", "independent"] = setting(
        "sequential", "each task begins from the weights after the last one, or from those that the run began with"
    )
    head: HeadMerge = setting(
        "auto",
        "the head is merged as all weights are, each task's own outputs stay apart, or none is trained; apart by "
        "default where tasks have outputs of their own, else merged",
    )
    outputs: Literal["task", "seen"] = setting(
        "task", "class-incremental training compares the task's own classes, as MagMax does, or all seen"
    )
    batch_norm: Literal["average", "anew"] = setting(
        "average", "statistics: mean of those after each task, or estimated anew on the last task's training samples"
    )
    conflict: float | None = setting(
        None, "above this share of opposed signs a task may stay apart, 0 to 1; none does by default", ge=0, le=1
    )
    excess: float = setting(
        0.5,
        "and it does where merging raises the loss on its validation samples, or training samples if there are none, "
        "by more than this, in nats",
        ge=0,
    )
    distill_epochs: int = setting(
        0,
        "passes over the task's samples in which the merge learns the answers of the expert and of the merge so far",
        ge=0,
    )
    distill_rate: float = setting(1e-4, "learning rate of these passes, by Adam, above 0", gt=0)
    answers: Literal["head", "class-means"] = setting(
        "head", "who answers: the head, or the nearest mean feature of a class in the merged network"
    )
    exemplars: int = setting(
        20,
        "class-means: training samples of each class that are kept, whose features give its mean after later merges; "
        "with 0 means stay as they were after their task",
        ge=0,
    )
    pool: str | None = setting(None, "folder of a pool (`lifelong.Pool`) that the expert of each task is put into")
    kept: Any = state(lambda: None)
    base: Params = state(dict)
    base_buffers: Params = state(dict)
    merged: Params = state(dict)
    buffers: Params = state(dict)
    labels: list[int] = state(list)
    sizes: list[int] = state(list)
    conflicts: list[dict[str, float]] = state(list)
    apart: Routes = state(Routes)
    last: Params = state(dict)
    means: ClassMeans = state(ClassMeans)
    memory: Buffer = state(Buffer)

    def __post_init__(self) -> None:
        self.kept = self.begun()
        if self.answers == "class-means" and self.conflict is not None:
            raise InputError(
                "answers = class-means are of one merge, and conflict lets tasks stay apart: set one of them"
            )

    def predicts_numbers(self) -> bool:
        return self.regression and self.answers != "class-means"

    @abstractmethod
    def begun(self) -> Incremental:
        """Return the merge of no experts yet."""

    def combined(self, learner: Learner, task: Task) -> Params:
        """Return the merge of all experts that were added, after `task`."""
        kept: Incremental = self.kept
        return kept.merged(self.base)

    def statistics(self, learner: Learner, task: Task) -> Params:
        """Return what the merge must know of the expert of `task` beside its weights."""
        return {}

    def before_task(self, learner: Learner, task: Task) -> None:
        """Freeze what does not learn, and go back to the base where tasks are trained independently.

        Raises:
            InputError: a head that cannot be treated as asked for, or a pool of another base or run.
        """
        self._hold_head(learner)
        self.labels = list(task.classes)
        self.sizes.append(len(task.classes))
        if not self.base:
            trunk = {f"trunk.{name}": each for name, each in mergeable(learner.model.trunk).items()}
            head = {f"head.{name}": each for name, each in tree.parameters(learner.model.head).items()}
            self.base = tree.snapshot({**trunk, **(head if self._head(learner) == "merged" else {})})
            self.base_buffers = tree.snapshot(dict(learner.model.named_buffers()))
        elif self.training == "independent":
            start_over(learner, self._live(learner), self.base)
            tree.copy_(dict(learner.model.named_buffers()), self.base_buffers)
        elif self.last and str(task.index - 1) in self.apart.weights:
            # What opposes the merge should not come into it with the next task.
            start_over(learner, self._live(learner), {name: self.last[name] for name in self.base})
            live = statistics_of(learner.model)
            tree.copy_(live, {name: self.last[name] for name in live})
        if self.pool is not None:
            # What is refused should not wait until the task is learned.
            self._check_pool(Path(self.pool), learner, task)

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        if learner.scenario is not Scenario.CLASS or self.outputs == "seen":
            return loss
        others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        others[self.labels] = False
        # Replayed samples, of other classes, are compared with all.
        own = ~others[batch.targets]
        return F.cross_entropy(logits.masked_fill(own.unsqueeze(1) & others, -torch.inf), batch.targets)

    def after_task(self, learner: Learner, task: Task) -> None:
        fold(learner.model.trunk)  # the adapters of this task, if there are any, become part of its expert
        expert, statistics = tree.snapshot(self._live(learner)), self.statistics(learner, task)
        prototype = None
        if self.pool is not None or self.conflict is not None:
            prototype = self.prototype(learner, task)
        if self.pool is not None:
            name, known = self._in_pool(learner, task)
            # A run that is resumed may have stored it already.
            whole = {**expert, **saved_buffers(learner.model)}
            Pool(self.pool).add(name, whole, task=known, prototype=prototype, replace=True)
        found = conflicts(self.base, self.merged, expert) if self.merged else {}
        self.conflicts += [shares(found)] if found else []
        if prototype is not None and self.conflict is not None:
            self.apart.meet(prototype)
        if self._stays_apart(learner, task, expert, statistics, found):
            self.apart.add(task.index, {**expert, **tree.snapshot(statistics_of(learner.model))})
            if len(self.memory):  # the merge is not chosen by samples that it does not answer
                self.memory.keep((self.memory.groups != task.index).nonzero().flatten())
            return
        before = {**self.merged, **self.buffers}
        self.kept.add(self.base, expert, statistics)
        if self.conflict is not None and self.training == "sequential":
            self.last = {**expert, **tree.snapshot(statistics_of(learner.model))}
        self.merged = self.combined(learner, task)
        self.buffers = self._statistics_of_merge(learner, task)
        if self.distill_epochs:
            self.merged = self._distilled(learner, task, before)
        if self.answers == "class-means":
            merged = {**self.merged, **self.buffers}
            self.means.meet(learner, task, lambda inputs: features(learner, merged, inputs), self.exemplars)

    def weights(self, learner: Learner) -> Params:
        return {**super().weights(learner), **self.merged, **self.buffers}

    def measures(self) -> dict[str, Any]:
        layers = self.conflicts[0] if self.conflicts else {}
        return {
            "sign_conflict": {layer: [each[layer] for each in self.conflicts] for layer in layers},
            "tasks_kept_apart": sorted(map(int, self.apart.weights)),
        }

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        if learner.clock.step or not self.merged:
            return super().logits(learner, inputs, task)
        merged = {**self.merged, **self.buffers}
        # The classes of a task that is yet to come have no means.
        if self.answers == "class-means" and (learner.scenario is not Scenario.TASK or str(task) in self.means.rows):
            return self.means.logits(learner.scenario, features(learner, merged, inputs), task)
        if not self.apart.weights:
            return answer(learner, merged, inputs, task)
        if learner.scenario is Scenario.TASK:
            return answer(learner, self.apart.weights.get(str(task), merged), inputs, task)
        nearest = self.apart.nearest(self._base_features(learner, inputs))
        return routes.answered(
            nearest, lambda index, rows: answer(learner, self.apart.weights.get(str(index), merged), inputs[rows], task)
        )

    def prototype(self, learner: Learner, task: Task) -> Tensor:
        """Return the mean direction `[width]` of the base's features of the training samples of `task`."""
        return mean_direction(learner, {**self.base, **self.base_buffers}, task)

    def _base_features(self, learner: Learner, inputs: Tensor) -> Tensor:
        return features(learner, {**self.base, **self.base_buffers}, inputs).float()

    def _live(self, learner: Learner) -> Params:
        live = dict(learner.model.named_parameters())
        return {name: live[name] for name in self.base}

    def _head(self, learner: Learner) -> str:
        own = isinstance(learner.model.head, MultiHead)
        return ("apart" if own else "merged") if self.head == "auto" else self.head

    def _hold_head(self, learner: Learner) -> None:
        head, treated = learner.model.head, self._head(learner)
        own = isinstance(head, MultiHead)
        if treated == ("merged" if own else "apart"):
            remedy = "one head for all tasks (head = single)" if own else "a head that is multi or growing"
            raise InputError(f"head = {treated} of the merge needs {remedy}: each task's outputs are its own there")
        if treated == "fixed":
            freeze(learner, head)
        if treated == "apart" and (self.outputs == "task" or learner.scenario is Scenario.TASK):
            # They get no gradient, but weight decay would shrink them.
            for block in list(head.blocks)[:-1]:  # type: ignore[arg-type]
                freeze(learner, block)

    def _distilled(self, learner: Learner, task: Task, before: Params) -> Params:
        split, size = task.train.ready(learner.device), min(_DISTILLED, learner.largest_batch)
        order = torch.randperm(len(split), generator=randomness.generator(learner.seed, "distillation", task.index))
        batches = [inputs for inputs, _ in split.batches(size, order.to(learner.device))]
        return distilled(
            learner,
            self.merged,
            self.buffers,
            before,
            self.sizes,
            batches,
            epochs=self.distill_epochs,
            learning_rate=self.distill_rate,
            numbers=split.targets.is_floating_point(),
            apart=[int(index) for index in self.apart.weights],
        )

    def _check_pool(self, folder: Path, learner: Learner, task: Task) -> None:
        # With its buffers, so that a merge of the pool is a network that runs can begin from.
        base = {**self.base, **{name: self.base_buffers[name] for name in saved_buffers(learner.model)}}
        pool = Pool(folder) if (folder / MANIFEST).is_file() else Pool.create(folder, base)
        name, known = self._in_pool(learner, task)
        pool.check_base(name, base)
        there = pool.members.get(name)
        if there is not None and there.task != known:
            raise InputError(f"the pool {folder} has {name!r} of another run: give each run a pool of its own")

    def _in_pool(self, learner: Learner, task: Task) -> tuple[str, dict[str, Any]]:
        """Return the name of the expert of `task` in a pool, and what is remembered of it there."""
        samples = fingerprint({"inputs": task.train.inputs, "targets": task.train.targets})
        known = {"name": task.name, "classes": list(task.classes), "fingerprint": samples, "inputs": seen(task)}
        name = re.sub(r"[^\w .+=-]+", "-", f"task {task.index + 1} {task.name}")
        return name, {**known, "seed": learner.seed, "training": self.training}

    def _stays_apart(
        self, learner: Learner, task: Task, expert: Params, statistics: Params, found: dict[str, tuple[int, int]]
    ) -> bool:
        """Return whether the expert of `task` opposes the merge, and would lose too much by being merged."""
        opposed, moved = (sum(each[part] for each in found.values()) for part in (0, 1))
        if self.conflict is None or opposed <= self.conflict * moved:
            return False
        trial = copy.copy(self)
        trial.kept = copy.deepcopy(self.kept)
        trial.kept.add(self.base, expert, statistics)
        split = (task.validation if len(task.validation) else task.train).ready(learner.device)
        alone, together = (
            mean_loss(learner, weights, split, task.index)
            for weights in ({}, {**trial.combined(learner, task), **self.buffers})
        )
        return together - alone > self.excess

    def _statistics_of_merge(self, learner: Learner, task: Task) -> Params:
        """Return the buffers that normalise in the merged network."""
        live = statistics_of(learner.model)
        if self.batch_norm == "anew":
            train = samples.of_task(learner, task, None)
            buffers = tree.snapshot(dict(learner.model.named_buffers()))
            with holding(learner.model, {**self.merged, **buffers}):
                reestimate(Answering(learner.model, task.index), (inputs for inputs, _ in train))
                return tree.snapshot(statistics_of(learner.model))
        count = len(self.conflicts) + 1 - len(self.apart.weights)
        return tree.interpolate(self.buffers, live, 1 / count) if self.buffers else tree.snapshot(live)


class Answering(nn.Module):
    """A network that answers for one task, as a module of one argument; its names have `network.` before them."""

    def __init__(self, network: nn.Module, task: int) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs, self.task)
        return logits


def answer(learner: Learner, weights: Params, inputs: Tensor, task: int) -> Tensor:
    """Return the logits that the network gives with `weights`, nothing being copied; others are as they are."""
    logits: Tensor = functional_call(learner.model, weights, (inputs, task))
    return logits


def features(learner: Learner, weights: Params, inputs: Tensor) -> Tensor:
    """Return the features `[batch, width]` that the trunk gives with `weights`; others are as they are."""
    found: Tensor = functional_call(learner.model.trunk, tree.under("trunk.", weights), (inputs,))
    return found


@torch.no_grad()
def mean_direction(learner: Learner, weights: Params, task: Task) -> Tensor:
    """Return the mean direction `[width]` of the features, with `weights`, of the training samples of `task`."""
    with evaluating(learner.model):
        batches = samples.of_task(learner, task, None)
        found = [F.normalize(features(learner, weights, inputs).float(), dim=1) for inputs, _ in batches]
    return torch.cat(found).mean(0)


@torch.no_grad()
def mean_loss(learner: Learner, weights: Params, split: Split, task: int) -> float:
    """Return the mean loss on a `ready` split of one task, of the network with `weights`."""
    total = 0.0
    with evaluating(learner.model), learner.precision():
        for inputs, targets in split.batches(min(samples.BATCH, learner.largest_batch)):
            total += float(task_loss(answer(learner, weights, inputs, task), targets, "sum"))
    return total / len(split)


def statistics_of(model: nn.Module) -> Params:
    """Return the live buffers of fractions, which normalisation keeps; counters are left to the network."""
    return {name: each for name, each in model.named_buffers() if each.is_floating_point()}


def seen(task: Task) -> dict[str, Any]:
    """Return how inputs of `task` came to the network, as JSON: new ones are comparable if they come so too."""
    split = task.train
    statistics = {name: getattr(split, name) for name in ("mean", "std")}
    numbers = {name: None if each is None else each.flatten().tolist() for name, each in statistics.items()}
    return {"shape": list(split.take(torch.arange(1)).inputs.shape[1:]), "dtype": str(split.inputs.dtype), **numbers}


def saved_buffers(model: Network) -> Params:
    """Return the live buffers of the trunk that its file holds, by their names in `model`."""
    kept = {f"trunk.{name}" for name in model.trunk.state_dict()}
    return {name: each for name, each in model.named_buffers() if name in kept}


def conflicts(base: Params, merged: Params, expert: Params) -> dict[str, tuple[int, int]]:
    """Return for each layer how many numbers the expert moved against the merge, and how many both of them moved."""
    found: dict[str, tuple[int, int]] = {}
    for name in base:
        layer = name.rpartition(".")[0]
        opposed, moved = found.get(layer, (0, 0))
        for (start,), (there,), (new,) in tree.blocks([name], base, merged, expert):
            agreement = (there - start).mul_(new - start)
            moved += int(torch.count_nonzero(agreement))
            opposed += int(torch.count_nonzero(agreement < 0))
        found[layer] = opposed, moved
    return found


def shares(found: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Return the share of opposed signs in each layer, 0 where nothing was moved by both."""
    return {layer: opposed / max(1, moved) for layer, (opposed, moved) in found.items()}
