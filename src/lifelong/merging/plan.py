"""What a merge will do, known in full before anything is written: a job for every tensor of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifelong.errors import InputError
from lifelong.merging.checkpoint import Model
from lifelong.merging.formats import floating
from lifelong.merging.rule import Rule, Values, name_of


@dataclass(frozen=True)
class Source:
    """One tensor of one model.

    Args:
        model: where it comes from, as the user named it.
        name: of the tensor in that model.
        values: its numbers.
    """

    model: str
    name: str
    values: Values


@dataclass(frozen=True)
class Job:
    """One tensor of the result.

    Args:
        name: in the result.
        dtype: in the result, as safetensors names it.
        rule: what makes it of the sources; None copies the first expert bit for bit.
        base: the tensor of the base, or None.
        experts: the tensor of every expert, all of the shape of the base.
        running: the state that experts before these have left, for a rule that takes them in one at a time.
        before: how many experts those were.
        statistics: what the rule's `statistic` is of the tensor in each expert; none where none of them has it.
    """

    name: str
    dtype: str
    rule: Rule | None
    base: Source | None
    experts: tuple[Source, ...]
    running: tuple[Source, ...] = ()
    before: int = 0
    statistics: tuple[Source, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.experts[0].values.shape

    @property
    def sources(self) -> tuple[Source, ...]:
        return (() if self.base is None else (self.base,)) + self.experts


@dataclass(frozen=True)
class Plan:
    """A merge to be run.

    Args:
        jobs: in the order in which the first model has its tensors on disk.
        models: all that take part, by the names that the user gave.
        carried: files that go into the result beside the weights, by their names there: a path, or the text itself.
        metadata: strings for the headers of the weights.
        recipe: what was asked for, as JSON has it; it is recorded with the result.
        keep_running: store the state of rules that take experts in one at a time, so that more can be added.
        expected: digests of tensors of models, by model and tensor, that must be what is read.
    """

    jobs: tuple[Job, ...]
    models: Mapping[str, Model]
    carried: Mapping[str, Path | str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})
    recipe: Mapping[str, Any] = field(default_factory=dict)
    keep_running: bool = False
    expected: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def check(jobs: Sequence[Job]) -> None:
    """Refuse jobs that no rule could run, naming every tensor and not only the first.

    Raises:
        InputError: tensors of several shapes, rules without the base that they need or with too few or too many
            experts, and settings that do not fit.
    """
    odd = []
    for job in jobs:
        shapes = {source.model: source.values.shape for source in job.sources}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{list(shape)} in {model}" for model, shape in shapes.items())
            odd.append(f"{job.name} is {listed}")
        if job.rule is not None:
            job.rule.check(job.before + len(job.experts))
            if job.rule.needs_base and job.base is None:
                raise InputError(f"rule {name_of(job.rule)} needs a base model: give base_model, or --base")
    if odd:
        raise InputError(f"{len(odd)} tensors have several shapes: {'; '.join(odd)}")


def common_names(models: Mapping[str, Model]) -> list[str]:
    """Return the names of the tensors that all `models` have, in the order of the first one's files.

    Raises:
        InputError: tensors that some have and others lack; every one of them is named.
    """
    first, *others = models
    missing = [
        f"{name} is missing in {model}" for model in others for name in models[first] if name not in models[model]
    ]
    extra = [
        f"{name} is only in {model} and not in {first}"
        for model in others
        for name in models[model]
        if name not in models[first]
    ]
    if missing or extra:
        raise InputError(
            f"the models have different tensors ({len(missing) + len(extra)}): {'; '.join([*missing, *extra])}"
        )
    return list(models[first])


def mergeable(sources: Sequence[Source], dtypes: Sequence[str]) -> bool:
    """Return whether the tensor is one that rules work on: fractions, in every model.

    Raises:
        InputError: fractions in one model and integers in another.
    """
    kinds = {floating(dtype) for dtype in dtypes}
    if len(kinds) > 1:
        listed = ", ".join(f"{dtype} in {source.model}" for source, dtype in zip(sources, dtypes, strict=True))
        raise InputError(f"tensor {sources[0].name!r} is {listed}: integers and fractions do not merge")
    return kinds == {True}
