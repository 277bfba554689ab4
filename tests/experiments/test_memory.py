"""What a run says that it keeps."""

from __future__ import annotations

import sys

import pytest
import torch

from lifelong.allocator import keep_freed_memory
from lifelong.experiments import build, memory
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import run


def kept(method: str) -> dict[str, int]:
    values = {"stream": "split", "tasks": 3, "train_samples": 90, "steps": 2, "method": method}
    memory: dict[str, int] = run(recipe(values))["memory"]
    return memory


def test_joint_training_keeps_the_samples_of_all_earlier_tasks() -> None:
    split = build.stream(recipe({"stream": "split", "tasks": 3, "train_samples": 90})).tasks[0].train
    memory = kept("joint")
    assert memory["stored_samples"] == 180
    # Digits are 8 x 8 float32, and a label is an int64.
    assert memory["stored_bytes"] == 2 * split.nbytes == 180 * (64 * split.inputs.element_size() + 8)
    # Beside them the weights that it begins from each time, which are as large as the network at the end.
    assert memory["method_bytes"] == memory["stored_bytes"] + memory["model_bytes"]


@pytest.mark.parametrize("method", ["er", "icarl", "gdumb", "gem", "bic"])
def test_a_buffer_is_part_of_the_method_and_counted_once(method: str) -> None:
    memory = kept(method)
    assert 0 < memory["stored_samples"] <= 270
    assert memory["stored_samples"] * 64 <= memory["stored_bytes"] <= memory["method_bytes"]


@pytest.mark.parametrize("method", ["naive", "ewc"])
def test_without_samples_none_are_counted(method: str) -> None:
    memory = kept(method)
    assert memory["stored_samples"] == memory["stored_bytes"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no high-water mark that can be set back")
def test_what_was_freed_before_a_run_is_none_of_its_memory() -> None:
    keep_freed_memory()
    torch.ones(50_000_000)  # 200 MB, freed at once
    before = memory.peak_bytes()
    memory.reset_peak()
    assert memory.peak_bytes() < before - 150_000_000
