"""What some rules must know of an expert beside its weights, tensor by tensor: importances, Gram matrices.

A statistic is a tree with the names of the tensors that it is about. In memory it is a dict; on disk it lies beside the
weights, in `MODEL/statistics/KIND.safetensors`, or `MODEL.KIND.safetensors` beside a model that is one file; those of a
model with an adapter lie beside the adapter. A tensor that has none, such as a bias with RegMean, has none in any
expert, and the rule does what it says of such. `lifelong.merging.collect` makes them of modules and a few samples,
`lifelong.merging.texts` of a text classifier on disk and a table.

Kinds:
    fisher: the diagonal Fisher information, in the shape of the tensor.
    gram: mean of `x x^T` over the inputs x of a linear layer, `[inputs, inputs]`, under the name of its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lifelong.errors import InputError
from lifelong.merging.checkpoint import Model, open_model
from lifelong.merging.rule import Array, name_of


def path_of(model: Path, kind: str) -> Path:
    """Return where the statistics of the model at `model` lie."""
    if model.suffix == ".safetensors":
        return model.with_suffix(f".{kind}.safetensors")
    return model / "statistics" / f"{kind}.safetensors"


def opened(paths: Mapping[str, Path]) -> dict[str, Model]:
    """Return those statistics that are on disk, by the names of their models."""
    return {name: open_model(path) for name, path in paths.items() if path.is_file()}


def described(model: str, kind: str) -> str:
    """Return the name by which errors and records know the statistics of `model`."""
    return f"{model} ({kind})"


def check_presence(name: str, kind: str, present: Sequence[bool]) -> None:
    """Refuse a tensor of which some experts have the statistic and others lack it."""
    if any(present) and not all(present):
        lacking = ", ".join(str(expert) for expert, has in enumerate(present) if not has)
        raise InputError(f"tensor {name!r}: experts {lacking} (from 0) have no {kind} statistics, and others have")


def of_tensors(rule: object, trees: Sequence[Mapping[str, Array]] | None, experts: int) -> Callable[[str], list[Array]]:
    """Return what gives, for the name of a tensor, its statistics in every expert, or none where none has them.

    Args:
        rule: what will merge.
        trees: the statistics of each expert; None for a rule that needs none.
        experts: how many there are.

    Raises:
        InputError: a rule without the statistics that it needs, or with some that it does not know.
    """
    kind = getattr(rule, "statistic", "")
    if kind and trees is None:
        raise InputError(f"rule {name_of(rule)} needs the {kind} statistics of each expert")  # type: ignore[arg-type]
    if trees is not None and not kind:
        raise InputError("statistics are given, and the rule has no use for them")
    if trees is not None and len(trees) != experts:
        raise InputError(f"{len(trees)} statistics are given for {experts} experts")
    known = trees or ()

    def of_tensor(name: str) -> list[Array]:
        check_presence(name, kind, [name in tree for tree in known])
        return [tree[name] for tree in known if name in tree]

    return of_tensor
