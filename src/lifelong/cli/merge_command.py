"""`lifelong merge`: one model out of several, by a recipe or by a rule and its settings."""

from __future__ import annotations

import json
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lifelong.cli.arguments import Parser, Values
from lifelong.errors import InputError

if TYPE_CHECKING:
    from lifelong.merging.engine import Finished
    from lifelong.merging.plan import Plan
    from lifelong.merging.recipe import MergeRecipe

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def configure(parser: Parser) -> None:
    """Declare the options."""
    parser.usage = (
        "lifelong merge RECIPE.yml OUT [options]\n"
        "       lifelong merge --rule RULE [--base MODEL] MODEL MODEL ... --out OUT [--rule.SETTING VALUE] [options]\n"
        "       lifelong merge --into DIR MODEL ... [--rule.SETTING VALUE] [options]"
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a recipe as mergekit has it, and OUT; or models")
    parser.add_argument("--rule", help="how to merge, where there is no recipe; `lifelong list rules` shows them")
    parser.add_argument("--base", metavar="MODEL", help="the model that the others were fine-tuned from")
    parser.add_argument("--out", metavar="OUT", help="folder for the result; it must not exist")
    parser.add_argument("--into", metavar="DIR", help="add the models to an earlier result that was kept running")
    parser.add_argument("--keep-running", action="store_true", help="store what adding models later will need")
    parser.add_argument(
        "--out-dtype", metavar="DTYPE", help="format of the result (default: as the base, or the first)"
    )
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="largest file of weights (default 5GB)")
    parser.add_argument("--threads", metavar="N", help="workers (default: the processors there are)")
    parser.add_argument("--allow-nonfinite", action="store_true", help="merge inputs with NaN or infinities too")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted merge")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")
    parser.epilog = "Settings of a rule are dotted: --rule.density 0.2, or one for each model: --rule.weight 1,0.5."
    parser.groups = ("rule",)


def main(arguments: Namespace) -> int:
    """Merge; returns the exit status."""
    from lifelong.merging import engine

    began = time.monotonic()
    shard_bytes = _bytes(arguments.shard_size)
    threads = _threads(arguments.threads)
    plan, out = _planned(arguments)
    running = engine.merge(
        plan,
        out,
        threads=threads,
        shard_bytes=shard_bytes,
        resume=arguments.resume,
        allow_nonfinite=arguments.allow_nonfinite,
        replace=arguments.into is not None,
    )
    _watch(running, len(plan.jobs))
    _show(plan, out, time.monotonic() - began, arguments.json)
    return 0


def _planned(arguments: Namespace) -> tuple[Plan, Path]:
    """Return what is to be done, and where the result goes."""
    from lifelong.merging import adding, planning

    if arguments.into is not None:
        if arguments.rule or arguments.base or arguments.out or arguments.out_dtype:
            raise InputError("--into goes on with the rule, base and format of its folder: give none of them")
        return adding.added(Path(arguments.into), _models(arguments)[0]), Path(arguments.into)
    recipe, out = _asked(arguments)
    plan = planning.plan(recipe)
    return (adding.kept(plan) if arguments.keep_running else plan), out


def _asked(arguments: Namespace) -> tuple[MergeRecipe, Path]:
    """Return the recipe, and where the result goes."""
    from lifelong.merging import recipe

    paths, out = list(arguments.paths), arguments.out
    if arguments.rule is None:
        if arguments.dotted or arguments.base:
            raise InputError("--base and --rule.SETTING go with --rule; a recipe says these itself")
        if out is None and len(paths) == 2:
            out = paths.pop()
        if out is None or len(paths) != 1:
            raise InputError("give a recipe and a folder for the result, or --rule with models and --out")
        read = recipe.read(Path(paths[0]))
        if arguments.out_dtype:
            read = read.model_copy(update={"out_dtype": arguments.out_dtype})
        return read, Path(out)
    if out is None:
        raise InputError("--out is missing: a folder for the result")
    return recipe.parsed(_values(arguments), "the options"), Path(out)


def _models(arguments: Namespace) -> tuple[list[Values], Values]:
    """Return the models that are given, with parameters of their own, and the parameters that all share."""
    parameters = {name.partition(".")[2]: each for name, each in arguments.dotted.items()}
    models: list[Values] = [{"model": path, "parameters": {}} for path in arguments.paths]
    if not models:
        raise InputError("give the models to merge")
    for name in [name for name, each in parameters.items() if isinstance(each, list)]:
        numbers = parameters.pop(name)
        if len(numbers) != len(models):
            raise InputError(f"--rule.{name} has {len(numbers)} numbers for {len(models)} models")
        for model, number in zip(models, numbers, strict=True):
            model["parameters"][name] = number
    if arguments.into is not None:
        return [{**each, "parameters": {**parameters, **each["parameters"]}} for each in models], {}
    return models, parameters


def _values(arguments: Namespace) -> Values:
    """Return the recipe that options describe."""
    models, parameters = _models(arguments)
    values: Values = {"merge_method": arguments.rule, "models": models, "parameters": parameters}
    return {
        **values,
        **({"base_model": arguments.base} if arguments.base else {}),
        **({"out_dtype": arguments.out_dtype} if arguments.out_dtype else {}),
    }


def _watch(running: Iterator[Finished], tensors: int) -> None:
    """Draw a bar on a terminal while the merge runs."""
    if not sys.stderr.isatty():
        for _ in running:
            pass
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("merging", total=tensors)
        for each in running:
            bar.update(row, completed=each.done, description=each.name)


def _show(plan: Plan, out: Path, seconds: float, as_json: bool) -> None:
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    if as_json:
        print(json.dumps({"out": str(out), "tensors": len(plan.jobs), "bytes": written, "seconds": seconds}))
        return
    print(f"{out}: {len(plan.jobs)} tensors, {written:,} bytes, {seconds:.1f} s")


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMG]?)B?", text)
    if found is None or float(found[1]) == 0:
        raise InputError(f"shard-size = {text!r} must be a size such as 5GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


def _threads(text: str | None) -> int | None:
    if text is not None and (not text.isdecimal() or int(text) == 0):
        raise InputError(f"threads = {text!r} must be a number, at least 1")
    return None if text is None else int(text)
