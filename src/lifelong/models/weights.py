"""Weights to start from: the trunk of an earlier run, or any safetensors file whose names are the trunk's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from lifelong import tree
from lifelong.errors import InputError
from lifelong.models.pretrained.adapters import adapter_weights, beside_adapters

# How many tensors of each kind an error names.
_NAMED = 4


def load_trunk(trunk: nn.Module, content: bytes, name: str) -> None:
    """Copy the tensors of a safetensors file into `trunk`, all of them or none.

    Of a file that a run left (`trunk.` before the names, and `head.`) the head is left out. So are the tensors of the
    one layer that was taken off `trunk` as its head, where the file is that of the whole classifier. Adapters
    begin anew where the file has none.

    Args:
        trunk: changed in place.
        content: of the file.
        name: what errors call the file.

    Raises:
        InputError: no safetensors file, or tensors that are missing, too many, or of another shape or kind.
    """
    try:
        found = load(content)
    except SafetensorError as error:
        raise InputError(f"weights {name} are no safetensors file: {error}") from None
    if found and all(each.startswith(("trunk.", "head.")) for each in found):
        found = tree.under("trunk.", found)
    found = beside_adapters(trunk, found)
    absent = adapter_weights(trunk) - found.keys()
    live = {each: tensor for each, tensor in tree.weights(trunk).items() if each not in absent}
    known = trunk.state_dict().keys()
    # Buffers that are not persistent may be in a file, and tied tensors under each of their names: neither must be.
    missing = [each for each in live if each in known and each not in found]
    # The order of a file's tensors differs from one reading to the next.
    extra = sorted(each for each in found if each not in live and each not in known)
    shared = {each: found[each] for each in live if each in found}
    unlike = [
        f"{each} ({_kind(tensor)}, not {_kind(live[each])})"
        for each, tensor in shared.items()
        if _kind(tensor) != _kind(live[each])
    ]
    if _is_head(trunk, extra):
        extra = []
    faults = [("lack", missing), ("have in excess", extra), ("have in another shape", unlike)]
    if missing or extra or unlike:
        listed = "; ".join(f"they {verb} {_some(names)}" for verb, names in faults if names)
        raise InputError(f"weights {name} do not fit the network: {listed}")
    tree.copy_({each: live[each] for each in shared}, shared)


def _is_head(trunk: nn.Module, names: Sequence[str]) -> bool:
    """Return whether `names` are those of a single layer, in whose place `trunk` has the identity."""
    layers = {each.rpartition(".")[0] for each in names}
    return len(layers) == 1 and isinstance(dict(trunk.named_modules()).get(layers.pop()), nn.Identity)


def _kind(tensor: torch.Tensor) -> str:
    number = "real" if tensor.is_floating_point() else "integer"
    return f"{number} {list(tensor.shape)}"


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
