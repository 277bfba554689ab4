"""A network is a trunk and a head; any module becomes one by taking its last linear layer off."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from lifelong import randomness
from lifelong.errors import InputError, closest
from lifelong.models.heads import FixedBlock, GrowingHead, MultiHead, SingleHead

HeadKind = Literal["single", "multi", "growing"]


class Network(nn.Module):
    """What learns: `logits = head(trunk(inputs), task)`.

    Args:
        trunk: maps inputs to features `[batch, width]`.
        head: maps features and task to logits, and grows when a task comes.

    A method may set `route`, which runs the trunk in its own way in each task: `features = route(inputs, task)`.
    """

    route: Callable[[Tensor, int | Tensor], Tensor] | None = None

    def __init__(self, trunk: nn.Module, head: SingleHead | MultiHead) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def features(self, inputs: Tensor, task: int | Tensor | None = None) -> Tensor:
        """Return features `[batch, width]` of `inputs` `[batch, ...]`.

        Args:
            inputs: as the trunk takes them.
            task: as for `forward`; None where features are to be the same in all tasks.

        Raises:
            InputError: no task, and a method runs the trunk in its own way in each.
        """
        if self.route is None:
            features: Tensor = self.trunk(inputs)
            return features
        if task is None:
            raise InputError(
                "the network runs in its own way in each task, and a method of the chain needs features that are the "
                "same in all"
            )
        return self.route(inputs, task)

    def forward(self, inputs: Tensor, task: int | Tensor) -> Tensor:
        """Return logits `[batch, outputs]`; `task` is an index, or `[batch]` int64 where samples differ in it."""
        logits: Tensor = self.head(self.features(inputs, task), task)
        return logits

    def answers(self, inputs: Tensor, tasks: Iterable[int], features: Tensor | None = None) -> list[Tensor]:
        """Return the logits of the same inputs in each of `tasks`; the trunk runs once, where it is the same in all.

        Args:
            inputs: `[batch, ...]`.
            tasks: their indices.
            features: of the inputs, if they are known and the same in all tasks.
        """
        if self.route is not None:
            return [self(inputs, task) for task in tasks]
        found = self.features(inputs) if features is None else features
        return [self.head(found, task) for task in tasks]


def with_head(
    trunk: nn.Module,
    kind: HeadKind,
    *,
    sample: Tensor,
    classes: tuple[int, ...],
    outputs: int,
    mask_unseen: bool = False,
    seed: int = 0,
    fixed: Callable[[int], FixedBlock] | None = None,
) -> Network:
    """Return `trunk` with a head on it.

    Args:
        trunk: maps a batch of inputs to features `[batch, width]`.
        kind: `single` (one layer, fully allocated), `multi` (a layer a task), `growing` (adds each task's classes).
        sample: `[2, ...]`, two inputs as the trunk takes them, to learn its width from.
        classes: the number of classes of each task, as far as they are known beforehand.
        outputs: what a single head answers with; the others take theirs as tasks come.
        mask_unseen: a single head answers only for classes seen so far.
        seed: of the weights of the head, whenever its layers come.
        fixed: gives the layer of a task, from its index, where none is to learn.

    Raises:
        InputError: a trunk that does not take such samples, or whose output is not `[batch, width]`.
    """
    width = feature_width(trunk, sample)

    def block(index: int, count: int) -> nn.Module:
        if fixed is not None:
            return fixed(index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.derive(seed, "head", index))
            return nn.Linear(width, count)

    if kind == "single":
        return Network(trunk, SingleHead(block(0, outputs), mask_unseen))
    return Network(trunk, MultiHead(block, classes) if kind == "multi" else GrowingHead(block, classes))


def without_head(module: nn.Module, head: str | None = None) -> nn.Module:
    """Return `module` with its last linear layer replaced by the identity, so that it yields features.

    Args:
        module: a classifier; changed in place.
        head: dotted name of the module to take off, of any kind; by default the last `nn.Linear` in the order of
            definition.

    Raises:
        InputError: no linear layer, or no module of that name.
    """
    linear = [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]
    named = [name for name, _ in module.named_modules() if name]
    if head is not None and head not in named:
        raise InputError(f"the model has no layer {head!r}{closest(head, named) or f': it has {named[-4:]}'}")
    if head is None and not linear:
        last = f", such as {named[-1]}" if named else ""
        raise InputError(
            f"{type(module).__name__} has no linear layer to take off as its head: name the module that is one with "
            f"model.head_name{last}"
        )
    name = head or linear[-1]
    if name == "":
        return nn.Identity()
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, nn.Identity())
    return module


def feature_width(trunk: nn.Module, sample: Tensor) -> int:
    """Return the width of the features `[batch, width]` that `trunk` makes of `sample`, `[2 or more, ...]` inputs.

    Raises:
        InputError: a trunk that does not take such samples, or whose output is not `[batch, width]`.
    """
    training = trunk.training
    trunk.eval()
    try:
        with torch.no_grad():
            shape = tuple(trunk(sample).shape)
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the model does not take samples of shape {tuple(sample.shape[1:])}: {reason}") from error
    finally:
        trunk.train(training)
    if len(shape) != 2:
        raise InputError(
            f"the model's features have the shape {shape} for a batch of {len(sample)}: they must be [batch, width]"
        )
    return int(shape[1])
