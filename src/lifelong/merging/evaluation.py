"""How good models are, as a command says of each; and what a merge keeps of its experts."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lifelong.errors import InputError

Scores = Mapping[str, float]


def evaluated(command: str, model: Path) -> dict[str, float]:
    """Run an evaluation of the model in the folder `model` and return its scores.

    Args:
        command: with `{}` where the folder goes. The last line that it prints is a number, or a JSON mapping of numbers
            by task.
        model: the folder.

    Raises:
        InputError: a command that cannot be run, fails, or does not end in scores.
    """
    if "{}" not in command:
        raise InputError("--evaluate must say with {} where the folder of the model goes")
    words = [word.replace("{}", str(model)) for word in shlex.split(command)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"the evaluation cannot be run: {error}") from None
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    last = next((line for line in reversed(lines) if line.strip()), "")
    try:
        found = json.loads(last)
        if not isinstance(found, dict):
            return {"score": float(found)}
        return {str(name): float(each) for name, each in found.items()}
    except (ValueError, TypeError):
        said = " ".join((done.stderr or done.stdout).split())[-200:]
        raise InputError(
            f"the evaluation must end in a number or a JSON mapping of numbers; it ended with status "
            f"{done.returncode}: {said}"
        ) from None


def normalised(scores: Scores, experts: Mapping[str, Scores]) -> dict[str, float]:
    """Return each score over that of the best expert on the same task, 0 where that is 0 (as in 2212.04089)."""
    best = {task: max((each.get(task, 0.0) for each in experts.values()), default=0.0) for task in scores}
    return {task: score / best[task] if best[task] else 0.0 for task, score in scores.items()}
