"""Merge recipes in mergekit's format: what they may say, and the value of a parameter for a given tensor.

The names and their meaning are mergekit's, so that its recipes run unchanged; anything that is neither known to it nor
to us is refused by name, where mergekit would ignore it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from lifelong.errors import InputError, closest
from lifelong.yaml_file import read_yaml

Scalar = bool | int | float | str


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Conditional(_Strict):
    """A value for the tensors whose name contains `filter`; for all of them where it is missing or `*`."""

    value: Scalar | list[Scalar]
    filter: str | None = None


Parameter = Scalar | list[Scalar] | Conditional | list[Conditional]
Parameters = dict[str, Parameter]


class Input(_Strict):
    """A model that takes part, with parameters of its own."""

    model: str
    parameters: Parameters = {}


class SliceInput(Input):
    """Layers of a model, from the first of `layer_range` to before the second."""

    layer_range: tuple[int, int]


class Slice(_Strict):
    """Layers of the result: those of its sources, merged."""

    sources: list[SliceInput] = pydantic.Field(min_length=1)
    base_model: str | None = None
    parameters: Parameters = {}


class Tokenizer(_Strict):
    """Whose tokenizer the result has, and where the embeddings of single tokens come from."""

    source: str = "union"
    tokens: dict[str, Any] = {}
    pad_to_multiple_of: int | None = pydantic.Field(None, ge=1)


class MergeRecipe(_Strict):
    """A merge, as a recipe describes it."""

    merge_method: str
    models: list[Input] | None = pydantic.Field(None, min_length=1)
    slices: list[Slice] | None = pydantic.Field(None, min_length=1)
    base_model: str | None = None
    parameters: Parameters = {}
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> MergeRecipe:
        if (self.models is None) == (self.slices is None):
            raise ValueError("give either models or slices")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("give either tokenizer or tokenizer_source")
        return self

    def names(self) -> list[str]:
        """Return the models that take part, each once: the base first, then as they are listed."""
        listed = [each.model for each in self.models or []]
        listed += [source.model for each in self.slices or [] for source in each.sources]
        bases = [self.base_model, *(each.base_model for each in self.slices or [])]
        return list(dict.fromkeys([*(each for each in bases if each is not None), *listed]))


def read(path: Path) -> MergeRecipe:
    """Return the recipe in the YAML file `path`.

    Raises:
        InputError: no such file, not YAML, or something in it that no recipe says, with the closest word that one does.
    """
    return parsed(read_yaml(path), str(path))


def parsed(values: Mapping[str, Any], where: str = "recipe") -> MergeRecipe:
    """Return the recipe that `values` describe; `where` is what errors call it. Raises as `read`."""
    if "modules" in values:
        raise InputError(f"{where}: models of several modules (modules:) are not supported; merge each by itself")
    try:
        return MergeRecipe.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(f"{where}: {_first(error)}") from None


def _first(error: pydantic.ValidationError) -> str:
    """Return one line on what pydantic found first, names outside the format before anything else."""
    found = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")[0]
    place = ".".join(str(each) for each in found["loc"])
    if found["type"] == "extra_forbidden":
        known = {name for kind in _KINDS for name in kind.model_fields}
        name = str(found["loc"][-1])
        return f"unknown key {place!r}{closest(name, known)}"
    message = str(found["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


_KINDS: tuple[type[pydantic.BaseModel], ...] = (MergeRecipe, Slice, SliceInput, Input, Tokenizer, Conditional)


def value_of(parameter: Parameter, name: str, depth: float) -> Scalar | None:
    """Return the value of `parameter` for a tensor.

    Args:
        parameter: a value; a list of numbers, a gradient over the depth of the network, interpolated linearly (of
            words: the one in place); or values with filters, of which the first that fits counts.
        name: of the tensor.
        depth: where its layer lies: 0 for the first, 1 for the last, 0 for what is in no layer.

    Returns:
        The value, or None where no filter fits.
    """
    if isinstance(parameter, Conditional):
        parameter = [parameter]
    if not isinstance(parameter, list):
        return parameter
    for each in parameter:
        if isinstance(each, Conditional) and (each.filter in (None, "*") or str(each.filter) in name):
            return value_of(each.value, name, depth)
    values = [each for each in parameter if not isinstance(each, Conditional)]
    if not values:
        return None
    place = depth * (len(values) - 1)
    left = values[int(place)]
    right = values[min(int(place) + 1, len(values) - 1)]
    if isinstance(left, bool | str) or isinstance(right, bool | str):
        return left
    share = place - int(place)
    return (1 - share) * left + share * right


def looked_up(sources: Iterable[Parameters], key: str, name: str, depth: float) -> Scalar | None:
    """Return the value of the first of `sources` that has `key` and a value for this tensor, or None."""
    for each in sources:
        if key in each:
            found = value_of(each[key], name, depth)
            if found is not None:
                return found
    return None


def as_yaml(recipe: MergeRecipe) -> str:
    """Return the recipe as YAML that `read` takes back."""
    return str(yaml.safe_dump(recipe.model_dump(exclude_defaults=True, mode="json"), sort_keys=False))
