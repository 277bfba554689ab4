"""How numbers are computed with."""

from __future__ import annotations

from pathlib import Path

import torch

from lifelong.experiments.meta_recipe import meta_recipe
from lifelong.experiments.meta_run import meta_events
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import events


def small_is_zero() -> bool:
    return float(torch.tensor(2e-38) / 4) == 0


def test_numbers_too_small_for_their_format_are_zero_while_a_run_goes_on(tmp_path: Path) -> None:
    supported = torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)
    made = recipe({"tasks": 1, "steps": 1, "train_samples": 20})
    meta = meta_recipe({"data": "digits", "ways": 2, "iterations": 1, "test_tasks": 2, "validation_tasks": 2})
    for going in (events(made), events(made, tmp_path / "run"), meta_events(meta, tmp_path / "meta")):
        assert {small_is_zero() for _ in going} == {supported}
        assert not small_is_zero()


def test_they_are_as_they_were_after_a_run_that_was_left() -> None:
    for before in (False, True):
        supported = torch.set_flush_denormal(before)
        going = events(recipe({"tasks": 1, "steps": 1, "train_samples": 20}))
        next(going)
        going.close()
        assert small_is_zero() == (before and supported)
    torch.set_flush_denormal(False)
