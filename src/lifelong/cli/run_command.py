"""`lifelong run`: one method, one seed."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from lifelong.cli.arguments import Parser, add_execution, add_recipe, recipe_values


def configure(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("recipe", nargs="?", help="YAML file of settings; options override it")
    add_recipe(parser)
    parser.add_argument("--out", required=True, help="folder for the result, the weights and the state")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder")
    add_execution(parser)


def main(arguments: Namespace) -> int:
    """Run it; returns the exit status."""
    from lifelong.cli.progress import watching
    from lifelong.experiments.plan import merged
    from lifelong.experiments.recipe import recipe
    from lifelong.experiments.run import Every, Finished, events
    from lifelong.experiments.tracking import tracked
    from lifelong.yaml_file import read_yaml

    base = read_yaml(Path(arguments.recipe)) if arguments.recipe else {}
    made = recipe(merged(base, recipe_values(arguments)))
    every = Every.parse(arguments.checkpoint_every)
    out = Path(arguments.out)
    running = events(made, out, resume=arguments.resume, checkpoint_every=every)
    result = None
    with watching(1) as watcher:
        for event in tracked(running, made, out, arguments.track):
            watcher.see(made.method, event)
            if isinstance(event, Finished):
                result = event.result
    assert result is not None
    if arguments.json:
        print(json.dumps(result))
    else:
        from rich.console import Console

        from lifelong.reports import print_table

        print_table([result], Console())
        print(f"{out / 'result.json'}")
    return 0
