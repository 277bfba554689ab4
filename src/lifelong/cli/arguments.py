"""Options made of the recipe's fields, so that each setting is declared once."""

from __future__ import annotations

import argparse
import re
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Mapping
from typing import Any, NoReturn, get_args, get_type_hints

import yaml

from lifelong import settings
from lifelong.errors import InputError, closest
from lifelong.experiments.recipe import NESTED, Recipe

Values = dict[str, Any]

# Settings whose commas divide names, not values.
_NAMES = ("data", "target", "unseen", "validation_data", "test_data", "weights")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line that name the closest option, and with dotted settings.

    `--method.strength 100` is kept as `dotted["method.strength"] = 100`; `groups` are the words before the dot.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
            **arguments,
        )
        self.groups: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse(self, argv: list[str]) -> Namespace:
        """Return the arguments, with dotted settings under `dotted`."""
        # Taken out first: argparse would give the value of an option that it does not know to the next positional.
        dotted, others = self._dotted(argv)
        found, rest = self.parse_known_args(others)
        if rest:
            options = [option for action in self._actions for option in action.option_strings]
            kind = "option" if rest[0].startswith("-") else "argument"
            raise InputError(f"unknown {kind} {rest[0]!r}{closest(rest[0], options)} (see {self.prog} --help)")
        found.dotted = dotted
        return found

    def _dotted(self, argv: list[str]) -> tuple[Values, list[str]]:
        dotted: Values = {}
        others: list[str] = []
        words = iter(argv)
        for word in words:
            name, equals, text = word.removeprefix("--").partition("=")
            if not word.startswith("--") or "." not in name or name.partition(".")[0] not in self.groups:
                others.append(word)
                continue
            if not equals:
                text = next(words, "")
                if not text or text.startswith("--"):
                    raise InputError(f"option --{name} needs a value")
            dotted[name] = value(text)
        return dotted, others


def add_recipe(
    parser: Parser, *, without: tuple[str, ...] = (), kind: type = Recipe, nested: Mapping[str, str] = NESTED
) -> None:
    """Give `parser` an option for every setting of a recipe but those in `without`; unset ones are None.

    Args:
        kind: the recipe's dataclass.
        nested: its settings that have settings of their own, and the field that holds these.
    """
    parser.groups = tuple(nested)
    hints = get_type_hints(kind)
    for field in settings.fields(kind):
        if field.name in without or field.name.endswith("_settings"):
            continue
        default = settings.default_of(field)
        shown = "" if default is None else f" (default {default})"
        options = [f"--{field.name.replace('_', '-')}"]
        if field.name == "weights":
            options.append("--init")
        meaning = (field.metadata["meaning"] + shown).replace("%", "%%")
        if hints[field.name] is bool:
            parser.add_argument(*options, action=BooleanOptionalAction, default=None, help=meaning)
        else:
            metavar = "|".join(_choices(hints[field.name])) or field.name.rpartition("_")[2].upper()
            parser.add_argument(*options, default=None, help=meaning, metavar=metavar)
    first, listed = ("--method.strength 100", "methods") if kind is Recipe else ("--algorithm.rate 0.4", "meta")
    parser.epilog = (
        f"Settings of what has some are dotted: {first} --model.hidden 400,400 --optimizer.momentum 0.9. "
        f"`lifelong list {listed}` shows them."
    )


def add_execution(parser: Parser) -> None:
    """Give `parser` the options that say how a run is carried out, and change nothing of its result."""
    parser.add_argument(
        "--checkpoint-every",
        default="60s",
        metavar="N|Ns",
        help="save within tasks every N steps or N seconds (default 60s)",
    )
    parser.add_argument("--track", metavar="NAME", help="log to tensorboard, wandb or mlflow as well")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def recipe_values(arguments: Namespace, kind: type = Recipe, nested: Mapping[str, str] = NESTED) -> Values:
    """Return the settings that were given, in the form that `recipe` and `plan` take."""
    names = {field.name for field in settings.fields(kind)}
    given = {key: each for key, each in vars(arguments).items() if key in names and each is not None}
    found = {
        key: value(each) if isinstance(each, str) and "," in each and key not in _NAMES else each
        for key, each in given.items()
    }
    for name, each in arguments.dotted.items():
        group, _, inner = name.partition(".")
        if group in nested:
            # Of a chain, or of a merge's rule, settings are nested once more: `--method.ewc.strength`.
            values = found.setdefault(nested[group], {})
            *outer, last = inner.split(".")
            for word in outer:
                values = values.setdefault(word, {})
            values[last] = each
    return found


def value(text: str) -> Any:
    """Return what `text` says: a number, true or false, null, a list (`400,400`), or itself."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    if "," in text and not text.startswith(("[", "{")):
        return [value(part) for part in text.split(",") if part]
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def size(name: str, text: str) -> int:
    """Return the bytes that `text`, such as `5GB`, says.

    Raises:
        InputError: it is no size; `name` is that of the option.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMG]?)B?", text)
    if found is None or float(found[1]) == 0:
        raise InputError(f"{name} = {text!r} must be a size such as 5GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


def _choices(hint: Any) -> list[str]:
    if bool in get_args(hint):
        return ["true", "false"]
    return [str(each) for each in get_args(hint) if isinstance(each, str)] or [
        str(inner) for each in get_args(hint) for inner in get_args(each) if isinstance(inner, str)
    ]
