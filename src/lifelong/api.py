"""The doors from Python: `lifelong.run` and `lifelong.compare`, with the settings of the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lifelong.errors import DivergedError
from lifelong.experiments import compare as comparison
from lifelong.experiments import run as running
from lifelong.experiments.compare import Failed
from lifelong.experiments.plan import plan
from lifelong.experiments.recipe import Recipe, recipe
from lifelong.streams import Stream


def run(
    *,
    stream: str | Stream = "permuted",
    model: str | nn.Module | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Take a network through a stream of tasks with one method and return the result.

    Args:
        stream: a kind as on the command line, or a stream made by the functions of `lifelong.streams`.
        model: a name as on the command line, or any classifier; its last linear layer is replaced by the head that the
            scenario asks for, and the rest is trained in place. Without one the network is that of the folder of
            `weights`, or an MLP.
        out: folder for result, weights and state; None leaves nothing on disk.
        resume: go on from the last checkpoint in `out`.
        settings: those of `lifelong run`, with underscores: `method="ewc"`, `method_settings={"strength": 100}`,
            `epochs=10`, `seed=0` ...

    Returns:
        the fields of `result.json`.

    Raises:
        InputError: a setting that is unknown or out of range, or data that cannot be had.
        DivergedError: the loss is not a finite number.
    """
    named = {
        **settings,
        **(
            {"stream": stream} if isinstance(stream, str) else {"scenario": stream.scenario.value, "tasks": len(stream)}
        ),
        **({} if model is None else {"model": model if isinstance(model, str) else Recipe.model}),
    }
    return running.run(
        recipe(named),
        None if out is None else Path(out),
        resume=resume,
        stream=stream if isinstance(stream, Stream) else None,
        model=model if isinstance(model, nn.Module) else None,
    )


def compare(
    methods: list[str] | Mapping[str, Mapping[str, Any]],
    *,
    seeds: int | list[int] = 1,
    out: str | Path | None = None,
    workers: int = 1,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Run several methods with several seeds and return their results.

    Args:
        methods: names, or a mapping from row to settings of the method and of the recipe.
        seeds: how many, from 0, or a list.
        out: folder for results and state, where finished runs are not run again; None keeps nothing.
        workers: processes that share the runs.
        settings: those of `lifelong compare`, with underscores.

    Returns:
        the fields of `result.json` for each run.

    Raises:
        InputError: as for `run`, or a folder that holds something else.
        DivergedError: a run's loss is not a finite number.
    """
    planned = plan({**settings, "methods": methods, "seeds": seeds})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "runs" if out is None else Path(out)
        for run_, event in comparison.compare(planned, folder, workers=workers):
            if isinstance(event, Failed):
                raise DivergedError(f"{run_.label}, seed {run_.recipe.seed}: {event.reason}")
        return comparison.gather(planned, folder)
