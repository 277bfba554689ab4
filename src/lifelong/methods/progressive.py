"""Progressive networks: a column a task, fed by the frozen columns of the tasks before."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong import randomness, tree
from lifelong.learner import Batch, Learner, start_over
from lifelong.methods import sequence, structure
from lifelong.methods.method import Method, state, transient
from lifelong.methods.sequence import Stage
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params


@dataclass
class Progressive(Method):
    """Give each task a freshly initialised column, with adapters from the hidden layers of all columns before it.

    Layer i of column k yields `h_i^k = f(W_i h_{i-1}^k + U_i relu(V_i [a_1 h_{i-1}^1; ...; a_{k-1} h_{i-1}^{k-1}]))`
    (Rusu et al. 2016, 1606.04671, eq. 2), the head likewise; the first layer has no adapter. V projects onto as many
    units as one column has, by 1x1 convolutions where the layer is one; U has the shape of W. The scalars a start at
    random in 0..`scale`. Columns and adapters of finished tasks are frozen, without dropout and with their own
    statistics of normalisation. Parameters grow with the square of the number of tasks.

    The trunk is a sequence of linear or convolution layers, and the network itself holds the column of the last task.
    """

    family: ClassVar[str] = "structural"
    paper: ClassVar[str] = "1606.04671"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.TASK,)
    needs_task_id: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    alone: ClassVar[str] = "columns of old tasks never move, so there is nothing to hold or to replay for"
    regression: ClassVar[bool] = True

    scale: float = setting(0.1, "what the adapters' factors on older columns are drawn below, at least 0", ge=0)
    columns: list[Params] = state(list)
    adapters: list[Params] = state(list)
    frozen: list[list[Stage]] = transient(list)

    def setup(self, learner: Learner) -> None:
        """Look at the trunk.

        Raises:
            InputError: it is no sequence of layers, or tasks share a head.
        """
        structure.need_heads(learner, "progressive")
        sequence.stages(learner.model.trunk, "progressive")

    def before_task(self, learner: Learner, task: Task) -> None:
        if task.index > 0:
            self._renew(learner, task.index)
        self.adapters.append(self._adapters(learner, task.index))

    def trainable(self, learner: Learner) -> Params:
        index = learner.clock.task
        for place, adapters in enumerate(self.adapters):
            for each in adapters.values():
                each.requires_grad_(place == index)
        own = {f"adapters.{index}.{name}": each for name, each in self.adapters[index].items()}
        return {**tree.parameters(learner.model), **own}

    def forward(self, learner: Learner, batch: Batch) -> Tensor:
        batch.features, logits = self._answer(learner, batch.inputs, learner.clock.task)
        return logits

    def after_task(self, learner: Learner, task: Task) -> None:
        self.columns.append(tree.snapshot(tree.weights(learner.model.trunk)))

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        if task >= len(self.adapters):
            return super().logits(learner, inputs, task)
        return self._answer(learner, inputs, task)[1]

    def _answer(self, learner: Learner, inputs: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """Return features `[batch, width]` of the column of `task`, and logits `[batch, classes]`."""
        columns = self._frozen(learner)[: task + 1]
        if task == len(columns):
            columns = [*columns, sequence.stages(learner.model.trunk, "progressive")]
        hidden = [inputs] * len(columns)
        for place, stages in enumerate(zip(*columns, strict=True)):
            given, hidden = hidden, []
            for column, stage in enumerate(stages):
                outputs = stage.layer(sequence.through(stage.before, given[column]))
                if place and column:
                    outputs = outputs + self._lateral(column, f"{place}", given[:column], stage)
                hidden.append(sequence.through(stage.rest, outputs))
        logits: Tensor = learner.model.head(hidden[-1], task)
        return hidden[-1], logits + self._lateral(task, "head", hidden[:-1], None) if task else logits

    def _lateral(self, column: int, place: str, hidden: list[Tensor], stage: Stage | None) -> Tensor:
        """Return `U relu(V [a h])` for the `hidden` of the columns before `column`; no stage stands for the head."""
        scale, down, up = (self.adapters[column][f"{place}.{part}"] for part in ("scale", "down", "up"))
        inputs = torch.cat([factor * each for factor, each in zip(scale, hidden, strict=True)], 1)
        if stage is None or not isinstance(stage.layer, torch.nn.Conv2d):
            return F.linear(F.relu(F.linear(inputs, down)), up)
        layer = stage.layer
        return F.conv2d(F.relu(F.conv2d(inputs, down)), up, None, layer.stride, layer.padding, layer.dilation)

    def _adapters(self, learner: Learner, index: int) -> Params:
        """Return fresh adapters for the column of the task `index`, by place and part."""
        if index == 0:
            return {}
        generator = randomness.generator(learner.seed, "adapters", index)
        layers = sequence.stages(learner.model.trunk, "progressive")[1:]
        ups = {f"{place + 1}": stage.layer.weight for place, stage in enumerate(layers)}
        ups["head"] = learner.model.head.get_parameter(f"blocks.{index}.weight")
        made: Params = {}
        for place, weight in ups.items():
            width = weight.shape[1]
            parts = {
                "scale": self.scale * torch.rand(index, generator=generator),
                "down": sequence.drawn((width, index * width, *[1] * (weight.dim() - 2)), generator),
                "up": sequence.drawn(tuple(weight.shape), generator),
            }
            made.update({f"{place}.{part}": each.to(weight) for part, each in parts.items()})
        return {name: each.detach() for name, each in made.items()}

    def _renew(self, learner: Learner, index: int) -> None:
        """Initialise the network's trunk for the task `index`."""
        fresh = copy.deepcopy(learner.model.trunk).cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.derive(learner.seed, "column", index))
            for module in fresh.modules():
                if isinstance(module, sequence.LAYERS):
                    module.reset_parameters()
        live = tree.weights(learner.model.trunk)
        start_over(learner, live, {name: each.to(live[name].device) for name, each in tree.weights(fresh).items()})

    def _frozen(self, learner: Learner) -> list[list[Stage]]:
        """Return the columns of finished tasks."""
        # Made while answering, they must yet be of use in training.
        with torch.inference_mode(False):
            for index in range(len(self.frozen), len(self.columns)):
                trunk = copy.deepcopy(learner.model.trunk).requires_grad_(False).eval()
                tree.copy_(tree.weights(trunk), self.columns[index])
                # What the column computes with is the state itself: no second copy.
                self.columns[index] = tree.weights(trunk)
                self.frozen.append(sequence.stages(trunk, "progressive"))
        return self.frozen
