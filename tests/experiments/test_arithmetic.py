"""How numbers are computed with."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import torch
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import run

supported = torch.set_flush_denormal(True)
torch.set_flush_denormal(False)
assert float(torch.tensor(2e-38) / 4) > 0
run(recipe({"tasks": 1, "steps": 1, "train_samples": 20, "threads": 2}))
# Of a size that several threads share.
assert bool((torch.full((1_000_000,), 2e-38) / 4 == 0).all()) == supported
"""


def test_a_run_takes_numbers_too_small_for_their_format_for_zero() -> None:
    # In a process of its own: the setting is the process's, and other tests have made theirs.
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
