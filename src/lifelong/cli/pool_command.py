"""`lifelong pool`: keep experts of one base in a folder, and merge any of them."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.cli.arguments import Parser, size
from lifelong.errors import InputError, unknown

if TYPE_CHECKING:
    from lifelong.tree import Params


def configure(parser: Parser) -> None:
    """Declare the options."""
    parser.usage = (
        "lifelong pool create DIR --base MODEL [--limit SIZE]\n"
        "       lifelong pool add DIR NAME MODEL [--base MODEL] [--format bf16|sparse] [--density SHARE] [--replace]\n"
        "       lifelong pool list DIR [--json]\n"
        "       lifelong pool remove DIR NAME\n"
        "       lifelong pool merge DIR [NAME ...] --rule RULE [--rule.SETTING VALUE] --out OUT\n"
        "       lifelong pool interpolate DIR NAME NAME --weight SHARE --out OUT\n"
        "       lifelong pool nearest DIR --data DATA --model MODEL [--model.SETTING VALUE] [--count N]"
    )
    parser.add_argument("action", metavar="ACTION", help=f"one of {', '.join(_ACTIONS)}")
    parser.add_argument("folder", metavar="DIR", help="the folder of the pool")
    parser.add_argument("names", nargs="*", metavar="NAME", help="experts; MODEL is a folder or a safetensors file")
    parser.add_argument("--base", metavar="MODEL", help="what experts are fine-tuned from; add: refused if another")
    parser.add_argument("--limit", metavar="SIZE", help="create: most that experts may take; the least useful ones go")
    parser.add_argument("--format", default="float32", metavar="float32|bf16|sparse", help="add: how to store it")
    parser.add_argument(
        "--density", default="0.1", metavar="SHARE", help="add: numbers that sparse keeps (default 0.1)"
    )
    parser.add_argument("--replace", action="store_true", help="add: an expert of that name goes")
    parser.add_argument(
        "--rule", default="magmax", help="merge: how; `lifelong list rules` shows them (default magmax)"
    )
    parser.add_argument("--out", metavar="OUT", help="merge, interpolate: folder for the result; it must not exist")
    parser.add_argument(
        "--weight", default="0.5", metavar="SHARE", help="interpolate: how far to go to the second (default 0.5)"
    )
    parser.add_argument("--data", help="nearest: the new task's samples, as `lifelong run` takes them")
    parser.add_argument("--model", help="nearest: the network that the experts of the pool are of")
    parser.add_argument("--target", help="nearest: name of the label column, where it is not the usual one")
    parser.add_argument("--text", help="nearest: name of the text column, where it is not the usual one")
    parser.add_argument("--image-size", metavar="SIZE", help="nearest: resize images to so many pixels a side")
    parser.add_argument("--invert", metavar="true|false", help="nearest: light and dark exchanged, as in the run")
    parser.add_argument("--pad", metavar="PIXELS", help="nearest: zeros around each picture, as in the run")
    parser.add_argument("--count", default="3", metavar="N", help="nearest: how many to name (default 3)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")
    parser.epilog = "Settings of a rule or a model are dotted: --rule.density 0.2 --model.hidden 400,400."
    parser.groups = ("rule", "model")


def main(arguments: Namespace) -> int:
    """Do what is asked; returns the exit status."""
    if arguments.action not in _ACTIONS:
        raise unknown("action", arguments.action, _ACTIONS)
    shown, line = _ACTIONS[arguments.action](arguments)
    print(json.dumps(shown) if arguments.json else line)
    return 0


def _create(arguments: Namespace) -> tuple[Any, str]:
    from lifelong.merging.pool import Pool

    _count(arguments, 0, "create takes a folder alone")
    if arguments.base is None:
        raise InputError("--base is missing: the model that the experts will be fine-tuned from")
    limit = None if arguments.limit is None else size("limit", arguments.limit)
    pool = Pool.create(arguments.folder, _weights(arguments.base), limit=limit)
    return {"base": pool.fingerprint, "limit": limit}, f"{pool.folder}: a pool for the base {pool.fingerprint}"


def _add(arguments: Namespace) -> tuple[Any, str]:
    from lifelong.merging.pool import Pool

    _count(arguments, 2, "add takes a folder, a name and a model")
    name, model = arguments.names
    pool = Pool(arguments.folder)
    gone = pool.add(
        name,
        _weights(model),
        base=None if arguments.base is None else _weights(arguments.base),
        format=arguments.format,
        density=_number("density", arguments.density, "a number above 0, and 1 at most"),
        replace=arguments.replace,
    )
    member = pool.members[name]
    line = f"{name}: {member.bytes:,} bytes, relative error {member.error:.2g}"
    return {**dataclasses.asdict(member), "dropped": gone}, line + (f"; dropped {', '.join(gone)}" if gone else "")


def _list(arguments: Namespace) -> tuple[Any, str]:
    from lifelong.merging.pool import Pool

    _count(arguments, 0, "list takes a folder alone")
    pool = Pool(arguments.folder)
    members = list(pool.members.values())
    rows = [
        f"{each.name}: {each.format}, {each.bytes:,} bytes, norm {each.norm:.4g}, relative error {each.error:.2g}"
        + (f", task {each.task['name']}" if "name" in each.task else "")
        for each in members
    ]
    total = f"{len(members)} experts, {pool.bytes:,} bytes" + (f" of {pool.limit:,}" if pool.limit else "")
    shown = {"base": pool.fingerprint, "limit": pool.limit, "members": list(map(dataclasses.asdict, members))}
    return shown, "\n".join([*rows, total])


def _remove(arguments: Namespace) -> tuple[Any, str]:
    from lifelong.merging.pool import Pool

    _count(arguments, 1, "remove takes a folder and a name")
    Pool(arguments.folder).remove(arguments.names[0])
    return {"removed": arguments.names[0]}, f"{arguments.names[0]} is removed"


def _merge(arguments: Namespace) -> tuple[Any, str]:
    from lifelong.merging.pool import Pool
    from lifelong.merging.rules import RULES

    out = _out(arguments)
    if arguments.rule not in RULES:
        raise unknown("merge rule", arguments.rule, RULES)
    spelled = RULES[arguments.rule].spelled
    values = _dotted(arguments, "rule")
    pool = Pool(arguments.folder)
    names = arguments.names or list(pool.members)
    merged = pool.merge(arguments.rule, names, **{spelled.get(name, name): each for name, each in values.items()})
    _save(merged, out)
    return {"out": str(out), "experts": names}, f"{out}: {arguments.rule} of {', '.join(names)}"


def _interpolate(arguments: Namespace) -> tuple[Any, str]:
    from lifelong.merging.pool import Pool

    _count(arguments, 2, "interpolate takes a folder and two names")
    out, weight = _out(arguments), _number("weight", arguments.weight, "a share, 0 to 1")
    first, second = arguments.names
    _save(Pool(arguments.folder).interpolate(first, second, weight), out)
    shown = {"out": str(out), "experts": [first, second], "weight": weight}
    return shown, f"{out}: {1 - weight:g} of {first} and {weight:g} of {second}"


def _nearest(arguments: Namespace) -> tuple[Any, str]:
    from lifelong.merging.pool import Pool

    _count(arguments, 0, "nearest takes a folder alone")
    names = ("data", "model", "target", "text", "image_size", "invert", "pad")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    absent = next((name for name in ("data", "model") if name not in given), None)
    if absent is not None:
        raise InputError(f"--{absent} is missing: nearest compares the features of new samples with those of each task")
    if not arguments.count.isdecimal() or int(arguments.count) == 0:
        raise InputError(f"count = {arguments.count!r} must be a number of experts, at least 1")
    pool = Pool(arguments.folder)
    pool.prototypes()  # where there are none, no data need be read

    from lifelong.experiments.prototypes import prototype

    found = pool.nearest(
        prototype(pool, {**given, "model_settings": _dotted(arguments, "model")}), int(arguments.count)
    )
    shown = [{"name": name, "cosine": cosine} for name, cosine in found]
    return shown, "\n".join(f"{name}: cosine {cosine:.3f}" for name, cosine in found)


_ACTIONS: dict[str, Callable[[Namespace], tuple[Any, str]]] = {
    "create": _create,
    "add": _add,
    "list": _list,
    "remove": _remove,
    "merge": _merge,
    "interpolate": _interpolate,
    "nearest": _nearest,
}


def _out(arguments: Namespace) -> Path:
    if arguments.out is None:
        raise InputError("--out is missing: the folder for the result")
    out = Path(arguments.out)
    if out.exists():
        raise InputError(f"{out} exists: choose another folder")
    return out


def _save(weights: Params, out: Path) -> None:
    from safetensors.torch import save

    from lifelong.files import write_file

    out.mkdir(parents=True)
    write_file(out / "model.safetensors", save(weights))


def _dotted(arguments: Namespace, group: str) -> dict[str, Any]:
    names = {name: name.partition(".") for name in arguments.dotted}
    return {setting: arguments.dotted[name] for name, (first, _, setting) in names.items() if first == group}


def _weights(path: str) -> Params:
    from safetensors.torch import load_file

    from lifelong.merging.checkpoint import open_model

    return {name: each for file in open_model(Path(path)).files for name, each in load_file(file.path).items()}


def _count(arguments: Namespace, names: int, told: str) -> None:
    if len(arguments.names) != names:
        raise InputError(f"{told} (see lifelong pool --help)")


def _number(name: str, text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} = {text!r} must be {what}") from None
