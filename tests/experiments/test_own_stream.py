"""A stream of the user's own tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lifelong
from lifelong.errors import InputError
from lifelong.streams import Scenario, Stream, split


def own(name: str) -> Stream:
    targets = torch.arange(40) % 4
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    data = lifelong.from_tensors((inputs, targets), (inputs, targets), name=name)
    return split(data, tasks=2, scenario=Scenario.CLASS)


def test_what_is_written_down_names_the_stream_that_was_learned(tmp_path: Path) -> None:
    result = lifelong.run(stream=own("machines"), out=tmp_path / "out")
    assert (result["recipe"]["stream"], result["recipe"]["data"]) == ("split", "machines")
    assert json.loads((tmp_path / "out" / "recipe.json").read_text()) == result["recipe"]
    assert lifelong.run(stream=own("machines"), out=tmp_path / "out", resume=True) == result
    with pytest.raises(InputError, match=r"holds a run of another recipe \(data = machines there, people here\)"):
        lifelong.run(stream=own("people"), out=tmp_path / "out", resume=True)
