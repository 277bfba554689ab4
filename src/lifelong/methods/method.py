"""The hooks: what a continual method may do besides descending the loss of the task at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lifelong import tree
from lifelong.learner import Batch, Learner
from lifelong.streams.task import Scenario, Split, Task
from lifelong.tree import Params

ALL_SCENARIOS = (Scenario.TASK, Scenario.DOMAIN, Scenario.CLASS)


def state(make: Callable[[], Any]) -> Any:
    """Declare a field that a checkpoint holds: tensors, numbers, strings, and dicts, lists or dataclasses of them."""
    return dataclasses.field(init=False, repr=False, default_factory=make)


def transient(make: Callable[[], Any]) -> Any:
    """Declare a field that lives within a step, or can be made again from the state; no checkpoint holds it."""
    return dataclasses.field(init=False, repr=False, default_factory=make, metadata={"transient": True})


@dataclass
class Method:
    """A continual-learning method; every hook does nothing by default.

    Fields that the constructor takes are settings (`lifelong.settings.setting`); all others are state (`state`) or
    `transient`. Within a step the hooks run in the order `batch`, `forward`, `loss`, `after_backward`, `before_step`,
    `after_step`. Gradients seen by `after_backward` are those of the loss alone, in whatever order methods are
    chained, because they are changed only in `before_step`.

    The class variables are what users choose by, and what the stream is checked against before anything is run:
    `scenarios` that it can do, whether it must know where a task ends to learn (`boundaries`, but not under the
    settings `boundaries_unless`, if there are any) and the task of a sample to answer in every scenario
    (`needs_task_id`; task-incremental, each method is told it), keeps raw samples of old tasks (`keeps_samples`), gets
    larger with the number of tasks by more than its head (`grows`), is made for seeing each sample once
    (`single_pass`), and can do tasks that predict a number (`regression`). `all_outputs` has a class-incremental head
    begin with the outputs of all classes, none masked, where the user does not say otherwise.

    Chains look at four more: `alone` says why it cannot be chained with others, where it cannot; of methods with
    `makes_loss`, which do not build on the loss so far, a chain has one at most and asks it first; one that `freezes`
    parts of the network before a task does so before others look at what is trained; one that `routes` has set the
    network's route, and goes with those alone that leave running the network to it.

    `against_divergence` says what to change where its loss is not a finite number.

    A method that `merges` leaves the network as the expert of the last task, and answers with something made of all.

    `before_task` and `after_task` are called on a stream without boundaries too, around each of the stages that
    accuracy is measured between. A method that does without boundaries promises that what it learns of old samples does
    not hang on where these stages end.
    """

    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    scenarios: ClassVar[tuple[Scenario, ...]] = ALL_SCENARIOS
    boundaries: ClassVar[bool] = True
    boundaries_unless: ClassVar[Mapping[str, Any]] = {}
    needs_task_id: ClassVar[bool] = False
    keeps_samples: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    single_pass: ClassVar[bool] = False
    alone: ClassVar[str] = ""
    makes_loss: ClassVar[bool] = False
    freezes: ClassVar[bool] = False
    all_outputs: ClassVar[bool] = False
    regression: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    routes: ClassVar[bool] = False
    against_divergence: ClassVar[str] = "try a smaller lr or strength, or clip the gradient"

    def needs_boundaries(self) -> bool:
        """Return whether, under its settings, it must know where a task ends."""
        unless = self.boundaries_unless.items()
        return self.boundaries and not (unless and all(getattr(self, name) == value for name, value in unless))

    def predicts_numbers(self) -> bool:
        """Return whether, under its settings, it can do tasks that predict a number."""
        return self.regression

    def setup(self, learner: Learner) -> None:
        """Prepare before the first task."""

    def before_task(self, learner: Learner, task: Task) -> None:
        """Prepare for `task`; its head exists, no step has been made, and the optimiser is made afterwards."""

    def reshape(self, learner: Learner) -> None:
        """Give the network the shapes that the restored state speaks of, where a run is resumed."""

    def trainable(self, learner: Learner) -> Params:
        """Return the live tensors that the optimiser trains; asked after `before_task`, and where a run is resumed.

        Those that are not the network's own are state of the method and need a prefix of theirs.
        """
        return tree.parameters(learner.model)

    def data(self, learner: Learner, tasks: Sequence[Task]) -> Split | None:
        """Return the `ready` training samples that this stage runs over, or None; `tasks` are those met so far."""
        return tasks[-1].train.ready(learner.device)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        """Return the batch to learn from, for instance with samples of a buffer added."""
        return batch

    def forward(self, learner: Learner, batch: Batch) -> Tensor:
        """Return the logits `[batch, outputs]` to learn from, and leave the features in `batch`."""
        batch.features = learner.model.features(batch.inputs, batch.task)
        logits: Tensor = learner.model.head(batch.features, batch.task)
        return logits

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        """Return the loss to descend, given the loss so far (mean cross-entropy at first), both 0-d."""
        return loss

    def after_backward(self, learner: Learner) -> None:
        """Look at the gradients of the loss in `learner.params`; do not change them."""

    def before_step(self, learner: Learner) -> None:
        """Change the gradients: add an anchor's, project, mask."""

    def after_step(self, learner: Learner) -> None:
        """Follow the path of the parameters, which have just moved."""

    def after_task(self, learner: Learner, task: Task) -> None:
        """Keep what later tasks must know of `task`."""

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        """Return the logits `[batch, outputs]` that answer for `inputs` at prediction time."""
        logits: Tensor = learner.model(inputs, task)
        return logits

    def restrict(self, learner: Learner, inputs: Tensor, logits: Tensor) -> Tensor:
        """Return the answers `logits` gave, with -inf for outputs that are ruled out; all of a chain are asked."""
        return logits

    def weights(self, learner: Learner) -> Params:
        """Return what a run leaves behind as the network's weights: by their names, parameters and buffers."""
        return tree.weights(learner.model)

    def measures(self) -> dict[str, Any]:
        """Return what it has found out on its way that results should tell, as JSON."""
        return {}
