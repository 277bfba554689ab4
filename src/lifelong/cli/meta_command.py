"""`lifelong meta`: learn from many tasks how to learn the next one, and see how well that works."""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.cli.arguments import Parser, Values, add_recipe, recipe_values
from lifelong.errors import DivergedError, InputError, unknown
from lifelong.experiments.meta_recipe import META_NESTED, MetaRecipe

if TYPE_CHECKING:
    from lifelong.experiments.meta_plan import PlannedMeta

_ACTIONS = ("train", "test")

# What tests have no use for.
_OF_TRAINING = (
    *("iterations", "tasks", "optimizer", "optimizer_settings", "lr", "schedule", "warmup", "clip"),
    *("validate_every", "validation_tasks", "patience", "train_ways", "train_shots", "train_queries"),
)


# Files of training.
_LEFT = ("recipe.json", "result.json", "meta.safetensors", "model.safetensors")
_OF_COMMAND = ("algorithms", "experiments", "seeds", "resume", "checkpoint_every")


def configure(parser: Parser) -> None:
    """Declare the options."""
    parser.usage = (
        "lifelong meta train [RECIPE.yaml] [--algorithm maml --data omniglot --ways 5 --shots 1 ...] --out DIR "
        "[--resume]\n"
        "       lifelong meta test DIR [--ways N --shots N --queries N --test-tasks N ...] [--out FILE] [--json]"
    )
    parser.add_argument("action", help="train or test")
    parser.add_argument("path", nargs="?", help="train: YAML file of settings, which options override; test: DIR")
    add_recipe(parser, kind=MetaRecipe, nested=META_NESTED)
    parser.add_argument("--algorithms", metavar="A,B", help="train: several algorithms, or rows of the recipe")
    parser.add_argument("--experiments", metavar="A,B", help="train: experiments of the recipe; all by default")
    parser.add_argument(
        "--seeds",
        metavar="N|A,B",
        help="train: how many seeds from 0: 3; or a list: 0,1,2, or 7, (with a comma) for one alone (default: the "
        "recipe's, or 1)",
    )
    parser.add_argument(
        "--out",
        help="train: folder for results and weights; finished trainings are kept. test: file for the result, which is "
        "replaced (default DIR/test.json)",
    )
    parser.add_argument("--resume", action="store_true", help="train: go on from the last checkpoint in the folder")
    parser.add_argument(
        "--checkpoint-every", metavar="N|Ns", help="train: save every N iterations or N seconds (default 60s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def main(arguments: Namespace) -> int:
    """Train or test; returns the exit status, 2 where a training failed."""
    if arguments.action not in _ACTIONS:
        raise unknown("action", arguments.action, _ACTIONS)
    return _train(arguments) if arguments.action == "train" else _test(arguments)


def _train(arguments: Namespace) -> int:
    from lifelong.experiments.meta_build import algorithm

    if arguments.out is None:
        raise InputError("train needs --out, the folder for results and weights")
    planned, several = _planned(arguments)
    for each in planned:
        with _named(each.name):
            algorithm(each.recipe)  # before the first is trained, which may take hours
    out = Path(arguments.out)
    found, failures = _trained(planned, out, arguments.resume or several, arguments.checkpoint_every or "60s")
    if found:
        _show(found, out, arguments.json, several)
    for failure in failures:
        print(f"lifelong: error: {failure}", file=sys.stderr)
    return 2 if failures else 0


def _planned(arguments: Namespace) -> tuple[list[PlannedMeta], bool]:
    """Return what is to be trained, and whether it is several trainings, each in a folder of its own."""
    from lifelong.experiments.meta_plan import PlannedMeta, is_plan, meta_plan
    from lifelong.experiments.meta_recipe import meta_recipe
    from lifelong.experiments.plan import merged
    from lifelong.yaml_file import read_yaml

    base = read_yaml(Path(arguments.path)) if arguments.path else {}
    given = recipe_values(arguments, MetaRecipe, META_NESTED)
    if "methods" in base:
        raise InputError(f"{arguments.path} is a comparison of methods: lifelong compare {arguments.path} --out DIR")
    if arguments.experiments is not None and "experiments" not in base:
        raise InputError(f"--experiments {arguments.experiments} chooses among those of a recipe, and there are none")
    if arguments.seeds is not None:
        base = {**base, "seeds": arguments.seeds}
    rows, experiments = (names.split(",") if names else None for names in (arguments.algorithms, arguments.experiments))
    if not is_plan(base) and rows is None:
        return [PlannedMeta("", meta_recipe(merged(base, given)))], False
    if "seed" in given or "algorithm" in given:
        raise InputError("several trainings have algorithms and seeds of their own: say --algorithms A,B and --seeds N")
    return meta_plan(base, given, algorithms=rows, experiments=experiments), True


def _trained(
    planned: Sequence[PlannedMeta], out: Path, resume: bool, checkpoint_every: str
) -> tuple[list[Values], list[str]]:
    """Return the results of what could be trained, and why the others could not."""
    from lifelong.cli.meta_progress import watching
    from lifelong.experiments.meta_run import meta_events
    from lifelong.experiments.run import Every, Finished

    every, found, failures = Every.parse(checkpoint_every), list[Values](), list[str]()
    with watching(len(planned)) as watcher:
        for each in planned:
            name = each.name or each.recipe.algorithm
            try:
                with _named(each.name):
                    for event in meta_events(each.recipe, out / each.folder, resume=resume, checkpoint_every=every):
                        watcher.see(name, each.recipe, event)
                        if isinstance(event, Finished):
                            expected = {"expected": list(each.expected)} if each.expected else {}
                            found.append({**event.result, "name": name, **expected})
            except DivergedError as error:
                failures.append(f"{name}: {error}")
            except InputError as error:
                failures.append(str(error))
                break  # to be put right first: the others are likely to have the same
    return found, failures


@contextlib.contextmanager
def _named(row: str) -> Iterator[None]:
    """Have errors name the `row` of a recipe that they are about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{row}: {error}" if row else str(error)) from error


def _show(found: Sequence[Values], out: Path, as_json: bool, several: bool) -> None:
    """Write the page of what was trained, and print the results."""
    from lifelong.reports import misses, over_seeds, write_meta_report

    page = write_meta_report(found, out / "report.html")
    if as_json:
        print(json.dumps(found if several else found[0]))
        return
    _print([(each["name"], each) for each in found])
    for name, cells in over_seeds(found):
        seeds, before, after = (text for text, _ in cells)
        print(f"{name}: {before} before and {after} after, over {seeds} seeds")
    for miss in misses(found):
        print(miss)
    print(page)


def _test(arguments: Namespace) -> int:
    from lifelong.experiments.meta_run import meta_test
    from lifelong.files import write_json

    if arguments.path is None:
        raise InputError("test needs the folder that `lifelong meta train` wrote")
    folder = Path(arguments.path)
    values = recipe_values(arguments, MetaRecipe, META_NESTED)
    if "model" in values or "model_settings" in values or "algorithm" in values:
        raise InputError("test takes algorithm and model as they were trained: leave --algorithm and --model out")
    given = {*values, *(name for name in _OF_COMMAND if getattr(arguments, name) not in (None, False))}
    for name in (*_OF_TRAINING, *_OF_COMMAND):
        if name in given:
            raise InputError(
                f"--{name.removesuffix('_settings').replace('_', '-')} is of training: leave it out of a test"
            )
    out = folder / "test.json" if arguments.out is None else _new_file(Path(arguments.out), folder)
    found = meta_test(folder, values)
    write_json(out, found)
    if arguments.json:
        print(json.dumps(found))
    else:
        _print([(str(folder), found)])
    return 0


def _new_file(out: Path, folder: Path) -> Path:
    """Return `out`, which a test may write.

    Raises:
        InputError: a folder, in one that is not there, or what training left in `folder`.
    """
    if out.is_dir() or not out.name:
        raise InputError(f"--out {out} is a folder: name a file, such as {out / 'test.json'}")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    if out.name in _LEFT and out.resolve().parent == folder.resolve():
        raise InputError(f"--out {out} is what training left: choose another file")
    return out


def _print(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lifelong.reports import protocol

    table = Table("", "tasks", "number", "before", "after", "steps", "calibration error", "ms a task")
    for name, each in rows:
        percent = bool(each["calibration"])
        ends = [_shown(each["test"][place], each["interval"][place], percent) for place in (0, -1)]
        table.add_row(
            name,
            protocol(each),
            str(each["test_tasks"]),
            *ends,
            str(len(each["test"]) - 1),
            f"{each['calibration'][-1]:.3f}" if percent else "",
            f"{1000 * each['seconds_per_task']:.1f}",
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)
        table.box = None
    console.print(table)


def _shown(mean: float, half: float, percent: bool) -> str:
    return f"{mean:.2%} ± {half:.2%}" if percent else f"{mean:.4f} ± {half:.4f}"
