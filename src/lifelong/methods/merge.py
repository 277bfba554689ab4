"""Any merge rule as a continual method, and the names that papers have for some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lifelong import curvature, randomness, settings, tree
from lifelong.errors import InputError, unknown
from lifelong.learner import Learner
from lifelong.merging import collect
from lifelong.merging.incremental import Incremental, incremental
from lifelong.merging.rule import Rule
from lifelong.merging.rules import RULES
from lifelong.methods import few, samples
from lifelong.methods.merging import Answering, Merging
from lifelong.methods.method import state
from lifelong.settings import setting
from lifelong.streams.task import Task
from lifelong.tree import Params


@contextmanager
def _learning(live: Params) -> Iterator[None]:
    """While this lasts, have gradients for all of `live`: weights that adapters change are frozen otherwise."""
    frozen = [each for each in live.values() if not each.requires_grad]
    for each in frozen:
        each.requires_grad_(True)
    try:
        yield
    finally:
        for each in frozen:
            each.requires_grad_(False)


def _rule(name: str) -> Any:
    return setting(name, "merge rule, one of `lifelong list rules`")


def _rule_settings(**values: Any) -> Any:
    return setting(lambda: dict(values), "settings of the rule: --method.rule_settings.NAME VALUE")


def _scale(value: float | None) -> Any:
    return setting(
        value,
        "lambda, how far to go from the base to the merge: a number, or auto to choose it on validation samples; the "
        "rule's own by default",
    )


def _training(value: str) -> Any:
    return setting(value, "each task begins from the weights after the last one, or from those that the run began with")


@dataclass
class Merge(Merging):
    """Merge the experts of all tasks by a rule: `theta_0 + lambda (rule(theta_0, theta_1 .. theta_t) - theta_0)`.

    What is kept does not grow with the number of tasks for rules that fold (averages, sums of whole or sparse task
    vectors, elections of a sign, MagMax, `randmix`), for `fisher` and `regmean`, whose statistics are collected at the
    end of each task, and for rules of two models, which merge each expert with the result so far. All others keep every
    expert, in main memory.

    With `scale = auto` the lambda of `scales` is taken that answers most of `validation_samples` of each task rightly;
    these are kept, from the validation split alone.
    """

    grows: ClassVar[bool] = True

    rule: str = _rule("magmax")
    rule_settings: Mapping[str, Any] = _rule_settings()
    scale: float | Literal["auto"] | None = _scale(None)
    scales: tuple[float, ...] = setting(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), "what auto chooses from", min_length=1
    )
    validation_samples: int = setting(100, "of each task, that auto keeps to choose by", ge=1)
    samples: int | None = setting(
        None, "training samples that the statistics of fisher and regmean are collected on; all by default", ge=1
    )
    chosen: float | None = state(lambda: None)

    def begun(self) -> Incremental:
        return incremental(self._made())

    def before_task(self, learner: Learner, task: Task) -> None:
        if self.scale == "auto" and not len(task.validation):
            raise InputError(
                "scale = auto is chosen on validation samples, and there are none: set validation, for instance to 0.1"
            )
        super().before_task(learner, task)

    def statistics(self, learner: Learner, task: Task) -> Params:
        if self.scale == "auto":
            few.keep(self.memory, learner, task, self.validation_samples)
        kind = RULES[self.rule].statistic
        if not kind:
            return {}
        batches = samples.of_task(learner, task, self.samples)
        if kind == "gram":
            network = Answering(learner.model, task.index)
            found = collect.gram(network, (inputs for inputs, _ in batches))
            found = {name.removeprefix("network."): each for name, each in found.items()}
        else:
            with _learning(self._live(learner)):
                found = curvature.fisher(
                    learner.model,
                    lambda inputs: learner.model(inputs, task.index),
                    batches,
                    kind="sampled",
                    generator=randomness.generator(learner.seed, "fisher", task.index),
                )
        return {name: each for name, each in found.items() if name in self.base}

    def combined(self, learner: Learner, task: Task) -> Params:
        merged = super().combined(learner, task)
        if self.scale == "auto":
            like = task.validation.ready(learner.device)
            found = [
                few.mean_accuracy(learner, tree.interpolate(self.base, merged, scale), self.memory, like)
                for scale in self.scales
            ]
            self.chosen = self.scales[found.index(max(found))]
            return tree.interpolate(self.base, merged, self.chosen)
        if self.scale is not None and not self._has_scale():
            return tree.interpolate(self.base, merged, self.scale)
        return merged

    def measures(self) -> dict[str, Any]:
        return {**super().measures(), "scale": self.chosen if self.scale == "auto" else self.scale}

    def _made(self) -> Rule:
        """Return the rule with its settings; where lambda is one of them it is ours, or 1 where it is yet to choose."""
        if self.rule not in RULES:
            raise unknown("merge rule", self.rule, RULES)
        values = dict(self.rule_settings)
        if self.scale is not None and self._has_scale():
            if "scale" in values:
                raise InputError(
                    f"rule_settings.scale = {values['scale']} is set beside scale = {self.scale}: give one"
                )
            values["scale"] = 1.0 if self.scale == "auto" else self.scale
        return settings.build(RULES[self.rule], values, f"merge rule {self.rule}")

    def _has_scale(self) -> bool:
        return "scale" in {field.name for field in settings.fields(RULES[self.rule])}


@dataclass
class MagMax(Merge):
    """Train one task after another and keep, number by number, the change of largest magnitude, at half its size.

    `theta = theta_0 + lambda tau_m`, `m = argmax_t |tau_t|`, `tau_t = theta_t - theta_0`, lambda = 0.5 (Marczak et al.
    2024, 2407.06322). The running maximum is one tree, whatever the number of tasks. Their head is fixed, made of the
    names of the classes by a text encoder; see `head`.
    """

    paper: ClassVar[str] = "2407.06322"
    grows: ClassVar[bool] = False

    scale: float | Literal["auto"] | None = _scale(0.5)


@dataclass
class MaxAbs(Merge):
    """MagMax of tasks that were trained independently: the control that shows what training in sequence does."""

    paper: ClassVar[str] = "2407.06322"
    grows: ClassVar[bool] = False

    training: Literal["sequential", "independent"] = _training("independent")
    rule: str = _rule("maxabs")


@dataclass
class AverageSequential(Merge):
    """Average the weights after each task, trained one after another: `theta = theta_0 + 1/T sum_t tau_t`."""

    paper: ClassVar[str] = "2407.06322"
    grows: ClassVar[bool] = False

    rule: str = _rule("linear")


@dataclass
class AverageIndependent(AverageSequential):
    """Average the weights after each task, trained independently: `theta = theta_0 + 1/T sum_t tau_t`."""

    training: Literal["sequential", "independent"] = _training("independent")


@dataclass
class RandMix(Merge):
    """Keep, number by number, the change of a task drawn at random: the control of MagMax's choice by magnitude."""

    paper: ClassVar[str] = "2407.06322"
    grows: ClassVar[bool] = False

    rule: str = _rule("randmix")


@dataclass
class TIESCL(Merge):
    """Trim task vectors to their largest fifth, elect signs, average those that agree, with lambda = 0.55.

    TIES (Yadav et al. 2023, 2306.01708) of tasks trained one after another, as MagMax compares with it.
    """

    paper: ClassVar[str] = "2306.01708"
    grows: ClassVar[bool] = False

    rule: str = _rule("ties")
    rule_settings: Mapping[str, Any] = _rule_settings(density=0.2, trim="model")
    scale: float | Literal["auto"] | None = _scale(0.55)
