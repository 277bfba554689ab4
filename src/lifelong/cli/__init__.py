"""The command line: arguments in, a recipe to the experiments, an exit status out."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import sys
from argparse import Namespace
from typing import Protocol

from lifelong import __version__
from lifelong.cli.arguments import Parser
from lifelong.errors import LifelongError, unknown

COMMANDS = {
    "run": "take a network through a stream of tasks with one method",
    "compare": "several methods and seeds on one stream: a table and a page",
    "tune": "search settings on validation samples",
    "merge": "one model out of several fine-tuned ones",
    "pool": "a folder of experts of one base, to be merged in any choice",
    "meta": "learn from many tasks how to learn the next one from a few examples",
    "report": "draw the page of finished runs again",
    "advise": "which method suits what is given, and why",
    "list": "show the streams, methods, models, data sets and optimisers that there are",
}

# What goes on where it was interrupted, besides `meta train`.
_RESUMED = ("run", "compare", "merge")

_HELP = f"""usage: lifelong COMMAND [options]

Take one neural network through many tasks, and measure what it learned, kept and cost.

commands:
{chr(10).join(f"  {name:<9} {meaning}" for name, meaning in COMMANDS.items())}

`lifelong COMMAND --help` shows every setting with its default. To begin:
  lifelong compare --stream permuted-digits --methods naive,ewc,si,joint --seeds 3 --out runs/first
"""


class Command(Protocol):
    """What a module of this package is for `main`."""

    def configure(self, parser: Parser) -> None: ...
    def main(self, arguments: Namespace) -> int: ...


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 2 wrong input, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(argv)
    except LifelongError as error:
        return _fail(str(error))
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _fail(f"there is not enough memory for this ({' '.join(str(error).split())}): ask for something smaller")
    except KeyboardInterrupt:
        print(f"lifelong: interrupted{_go_on(argv)}", file=sys.stderr)
        return 130


def _out_of_memory(error: Exception) -> bool:
    # PyTorch has a type of its own for CUDA alone.
    return isinstance(error, MemoryError) or any(words in str(error) for words in ("allocate memory", "out of memory"))


def _go_on(argv: list[str]) -> str:
    """Return how to go on after an interrupt, where something was kept."""
    if argv[0] not in _RESUMED and argv[:2] != ["meta", "train"]:
        return ""
    again = "" if argv[0] == "compare" or "--resume" in argv else " --resume"
    return f"; what is done is kept, go on with: lifelong {shlex.join(argv)}{again}"


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0
    if argv[0] == "--version":
        print(f"lifelong {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command: Command = importlib.import_module(f"lifelong.cli.{name}_command")
    parser = Parser(prog=f"lifelong {name}", description=COMMANDS[name][0].upper() + COMMANDS[name][1:] + ".")
    command.configure(parser)
    return command.main(parser.parse(argv[1:]))


def _fail(message: str) -> int:
    # One line, whatever a library put into the text.
    print(f"lifelong: error: {' '.join(message.split())}", file=sys.stderr)
    sys.stderr.flush()
    return 2


def spin_briefly() -> None:
    """Have OpenMP's threads sleep soon where they wait for each other, unless the environment says what they do.

    By default they spin for milliseconds, and beside another run keep the cores from those that work: each is then ten
    times as slow, or a hundred (`benchmarks/threads.py`). To be called before PyTorch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def entry() -> None:
    """The console script; a reader that stops reading (`| head`) is no error of ours, and TERM is an interrupt."""
    spin_briefly()
    # By default TERM ends this process alone, and the workers of a comparison go on unseen.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)
