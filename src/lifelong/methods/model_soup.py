"""The greedy soup as a continual method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.learner import Learner
from lifelong.merging.in_memory import merge
from lifelong.merging.incremental import Incremental, Pooled, on_cpu
from lifelong.merging.rules.linear import Linear
from lifelong.merging.soup import greedy_soup
from lifelong.methods import few
from lifelong.methods.merging import Merging
from lifelong.methods.method import state
from lifelong.settings import setting
from lifelong.streams.task import Task
from lifelong.tree import Params


@dataclass
class ModelSoup(Merging):
    """Average those weights after tasks with which the average answers best, over a few samples of every task.

    The greedy soup (Wortsman et al. 2022, 2203.05482, recipe 1), cooked anew after each task: begin with the best
    weights, try the others, best first, and keep each with which the average is at least as good. Theirs are of one
    task, fine-tuned with other settings each. The `samples` of each task are kept; they are of the validation split,
    or of training where there is none. All experts are kept, in main memory. For the plain average of all see
    `avg-sequential` and `avg-independent`.
    """

    paper: ClassVar[str] = "2203.05482"
    keeps_samples: ClassVar[bool] = True
    grows: ClassVar[bool] = True

    samples: int = setting(100, "samples of each task that are kept", ge=1)
    ingredients: list[int] = state(list)

    def begun(self) -> Incremental:
        return Pooled(Linear())

    def statistics(self, learner: Learner, task: Task) -> Params:
        few.keep(self.memory, learner, task, self.samples)
        return {}

    def combined(self, learner: Learner, task: Task) -> Params:
        like, base, experts = task.train.ready(learner.device), on_cpu(self.base), list(map(on_cpu, self.kept.experts))

        def soup(rule: Linear) -> Params:
            merged: Params = merge(rule, base, experts)
            return {name: each.to(self.base[name]) for name, each in merged.items()}

        best = greedy_soup(len(experts), lambda rule: few.mean_accuracy(learner, soup(rule), self.memory, like))
        tasks = [index for index in range(task.index + 1) if str(index) not in self.apart.weights]
        weights = best.each("weight", len(experts))
        self.ingredients = [index for index, weight in zip(tasks, weights, strict=True) if weight]
        return soup(best)

    def measures(self) -> dict[str, Any]:
        return {**super().measures(), "ingredients": self.ingredients}
