"""A setting is a dataclass field, declared once: command line, recipes, docs and results read it from there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lifelong.errors import InputError, closest

T = TypeVar("T")

# The greatest finite number of float32, in which networks compute.
_LARGEST = 3.4e38


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """Declare a dataclass field that a user may set.

    Args:
        default: the value when the user says nothing.
        meaning: one line for `--help` and the docs, with unit and range.
        limits: pydantic's constraints: `ge`, `gt`, `le`, `lt`, `pattern`, `min_length` ...
    """
    return dataclasses.field(
        **({"default_factory": default} if isinstance(default, Callable) else {"default": default}),  # type: ignore[arg-type]
        metadata={"meaning": meaning, "limits": limits},
    )


def fields(kind: type) -> list[dataclasses.Field[Any]]:
    """Return the fields of the dataclass `kind` that its constructor takes: its settings."""
    return [field for field in dataclasses.fields(kind) if field.init]


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the value that a setting has when nobody sets it."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return `kind(**values)` with every value checked and converted to the type of its field.

    Args:
        kind: a dataclass whose fields were declared with `setting`.
        values: as they came from the command line (strings) or from YAML.
        where: names the group in errors, such as `method ewc`.

    Raises:
        InputError: a name that is no setting, a value of another type, or one out of range.
    """
    known = {field.name: field for field in fields(kind)}
    for name in values:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise InputError(f"{where} has no setting {name!r}{closest(name, known) or f': it has {listed}'}")
    return kind(**_checked(kind, values, where))


def _as_meant(hint: Any, value: Any) -> Any:
    """Return `value` as its author meant it: `hidden: 400`, `layers: head` are tuples of one, `fisher: true` a word."""
    # Of a union its members, of anything else that alone.
    kinds = (hint,) if get_origin(hint) in (tuple, Literal) else (hint, *get_args(hint))
    if isinstance(value, bool):
        word = str(value).lower()
        return word if any(get_origin(kind) is Literal and word in get_args(kind) for kind in kinds) else value
    if not any(get_origin(kind) is tuple for kind in kinds) or _number_or_several(hint):
        return value
    if isinstance(value, str) and value and not any(kind is str or get_origin(kind) is Literal for kind in kinds):
        return tuple(part.strip() for part in value.split(",") if part)
    return (value,) if isinstance(value, int | float) else value


def _number_or_several(hint: Any) -> bool:
    """Return whether `hint` is a number or a tuple of such: one for all, or one for each."""
    kinds = get_args(hint)
    return any(kind in (int, float) for kind in kinds) and any(get_origin(kind) is tuple for kind in kinds)


def _checked(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    # Imported here: `lifelong --help` needs no validation, and pydantic costs a tenth of a second.
    import pydantic

    hints = get_type_hints(kind)
    declared: dict[str, Any] = {}
    for field in fields(kind):
        hint, limits = hints[field.name], field.metadata.get("limits", {})
        if limits and _number_or_several(hint):
            number: Any = next(each for each in get_args(hint) if each in (int, float))
            limited: Any = Annotated[number, pydantic.Field(**limits)]
            hint, limits = limited | tuple[limited, ...], {}
        elif limits and get_origin(hint) is not tuple and any(get_origin(kind) is Literal for kind in get_args(hint)):
            # The limits are the number's; pydantic cannot put them on a word.
            kinds = get_args(hint)
            each = (Annotated[one, pydantic.Field(**limits)] if one in (int, float) else one for one in kinds)
            hint, limits = Union[tuple(each)], {}  # noqa: UP007, of kinds that are only known here
        declared[field.name] = (hint, pydantic.Field(None, **limits))
    model = pydantic.create_model(
        kind.__name__,
        __config__=pydantic.ConfigDict(allow_inf_nan=False, protected_namespaces=()),
        **declared,
    )
    given = {name: _as_meant(hints[name], value) for name, value in values.items()}
    try:
        checked = model(**given)
    except pydantic.ValidationError as error:
        # Of a union pydantic tells why each kind does not fit: what is out of range says more than what is no tuple.
        first = sorted(error.errors(), key=lambda each: each["type"].endswith("_type"))[0]
        name = ".".join(str(part) for part in first["loc"] if part == first["loc"][0] or isinstance(part, int))
        reason = re.sub(r"^Value error, |^Input ", "", first["msg"])
        raise InputError(f"{where}: {name} = {first['input']!r} {reason}") from None
    found = {name: getattr(checked, name) for name in values}
    _refuse_unheld(found, where)
    return found


def _refuse_unheld(value: Any, where: str, path: str = "") -> None:
    """Raise `InputError` for a number, at any depth, that float32 cannot hold: not finite, or too large."""
    if isinstance(value, float) and not abs(value) <= _LARGEST:
        raise InputError(f"{where}: {path} = {value} should be a finite number, {_LARGEST:.1e} at most")
    if isinstance(value, Mapping):
        for name, each in value.items():
            # What users write as method.strength is kept as method_settings.
            _refuse_unheld(each, where, f"{path.removesuffix('_settings')}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for place, each in enumerate(value):
            _refuse_unheld(each, where, f"{path}.{place}")
