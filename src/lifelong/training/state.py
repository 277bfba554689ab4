"""All that a run must remember, as tensors and JSON: walked generically, so nothing can be forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lifelong import tree
from lifelong.errors import StateError
from lifelong.learner import Learner, grow, renew_optimizer, train_these
from lifelong.memory import Buffer
from lifelong.methods.method import Method
from lifelong.streams.task import Stream

Tensors = dict[str, Tensor]
_TENSOR = "tensor:"


def capture(value: Any, path: str, tensors: Tensors) -> Any:
    """Return `value` as JSON, with each tensor replaced by a reference and put into `tensors` under its path.

    Args:
        value: a tensor, number, string, None, or a dict, list or dataclass of such. Of a dataclass the settings and the
            transient fields are left out.
        path: dotted name of the value.
        tensors: filled.

    Raises:
        StateError: a value of another kind, which a checkpoint could not hold.
    """
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return _TENSOR + path
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): capture(each, f"{path}.{key}", tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [capture(each, f"{path}.{index}", tensors) for index, each in enumerate(value)]
    if dataclasses.is_dataclass(value):
        return {name: capture(getattr(value, name), f"{path}.{name}", tensors) for name in _state_fields(value)}
    raise StateError(f"{path} is a {type(value).__name__}, which a checkpoint cannot hold")


def restore(target: Any, saved: Any, path: str, tensors: Tensors, device: torch.device) -> Any:
    """Return the value that `capture` made `saved` of; a dataclass `target` is filled in place.

    Raises:
        StateError: other names than `target` has, or a tensor that is missing; the path is named.
    """
    if dataclasses.is_dataclass(target):
        names = _state_fields(target)
        if not isinstance(saved, dict) or set(saved) != set(names):
            found = sorted(saved) if isinstance(saved, dict) else saved
            raise StateError(f"{path} holds {found} in the checkpoint, and {sorted(names)} are needed")
        for name in names:
            old = getattr(target, name)
            setattr(target, name, restore(old, saved[name], f"{path}.{name}", tensors, device))
        return target
    if isinstance(saved, str) and saved.startswith(_TENSOR):
        name = saved.removeprefix(_TENSOR)
        if name not in tensors:
            raise StateError(f"the checkpoint has no tensor {name}")
        return tensors[name].to(device)
    if isinstance(saved, dict):
        inner = target if isinstance(target, dict) else {}
        return {key: restore(inner.get(key), each, f"{path}.{key}", tensors, device) for key, each in saved.items()}
    if isinstance(saved, list):
        return [restore(None, each, f"{path}.{index}", tensors, device) for index, each in enumerate(saved)]
    return saved


def method_bytes(method: Method) -> int:
    """Return the size of all tensors that `method` keeps between steps."""
    tensors: Tensors = {}
    capture(method, "method", tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def buffers(value: Any) -> Iterator[Buffer]:
    """Yield the buffers of samples within `value`, a method or a part of its state."""
    if isinstance(value, Buffer):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from buffers(each)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from buffers(getattr(value, field.name))


def save_learner(learner: Learner, tensors: Tensors) -> dict[str, Any]:
    """Put the weights, the optimiser's state and the random generators into `tensors` and return the rest as JSON."""
    for name, tensor in tree.weights(learner.model).items():
        tensors[f"model.{name}"] = tensor.detach()
    tensors["random.cpu"] = torch.get_rng_state()
    if learner.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(learner.device)
    frozen = [name for name, parameter in learner.model.named_parameters() if not parameter.requires_grad]
    # Between tasks there is no optimiser to speak of unless its state goes on.
    optimizer = learner.optimizer.state_dict() if learner.clock.total_steps else None
    return {
        "clock": dataclasses.asdict(learner.clock),
        "frozen": frozen,
        "optimizer": capture(optimizer, "optimizer", tensors),
    }


def load_learner(
    learner: Learner, method: Method, stream: Stream, saved: dict[str, Any], tensors: Tensors, keep: bool
) -> None:
    """Bring a freshly built `learner` to where `save_learner` found it.

    Args:
        method: restored already, as it says what is trained and of which shape.
        keep: the optimiser goes on between tasks, so it got its parameters task by task.

    Raises:
        StateError: weights of other names or shapes.
    """
    clock = saved["clock"]
    begun = clock["task"] + (1 if clock["step"] else 0)
    for index in range(begun):
        learner.clock.task = index
        grow(learner, stream.tasks[index])
        if keep:
            train_these(learner, method.trainable(learner))
            renew_optimizer(learner, keep)
    if begun:
        method.reshape(learner)
    live = tree.weights(learner.model)
    stored = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    _check_weights(live, stored)
    tree.copy_(live, {name: value.to(learner.device) for name, value in stored.items()})
    for name, parameter in learner.model.named_parameters():
        parameter.requires_grad_(name not in saved["frozen"])
    train_these(learner, method.trainable(learner))
    learner.clock = type(learner.clock)(**clock)
    if not keep and learner.clock.step:
        learner.optimizer = learner.make_optimizer(learner.trained.values())  # type: ignore[arg-type]
    if saved["optimizer"] is not None and (keep or learner.clock.step):
        load_optimizer(learner.optimizer, saved["optimizer"], tensors)
    torch.set_rng_state(tensors["random.cpu"])
    if learner.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], learner.device)


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any], tensors: Tensors) -> None:
    """Give a freshly built `optimizer` the state that `capture` made `saved` of."""
    # Not `restore` to the device: the optimiser knows that fused kernels want their step counters beside the weights.
    state = restore(None, saved, "optimizer", tensors, torch.device("cpu"))
    state["state"] = {int(key): value for key, value in state["state"].items()}
    for group in state["param_groups"]:
        # JSON has lists only, and some optimisers compare their betas as a tuple.
        group.update({key: tuple(each) for key, each in group.items() if isinstance(each, list) and key != "params"})
    optimizer.load_state_dict(state)


def _check_weights(live: Tensors, stored: Tensors) -> None:
    for name in live.keys() | stored.keys():
        if name not in live or name not in stored:
            raise StateError(f"weight {name} is {'not in the checkpoint' if name in live else 'not in the model'}")
        if live[name].shape != stored[name].shape:
            raise StateError(
                f"weight {name} has the shape {tuple(stored[name].shape)} in the checkpoint, "
                f"and {tuple(live[name].shape)} in the model"
            )


def _state_fields(value: Any) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(value)
        if "meaning" not in field.metadata and not field.metadata.get("transient")
    ]
