"""TensorBoard, Weights & Biases or MLflow beside the progress bar, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from lifelong.errors import InputError, unknown
from lifelong.experiments.compare import Failed
from lifelong.experiments.plan import Planned
from lifelong.experiments.recipe import Recipe, record
from lifelong.experiments.run import Evaluated, Finished, RunEvent
from lifelong.training.loop import Step

# A value a step would make logs larger than the model.
_EVERY = 50


def tracked(
    events: Iterable[RunEvent | Failed], recipe: Recipe, out: Path, name: str | None
) -> Iterator[RunEvent | Failed]:
    """Yield `events`, telling the tracker called `name` of losses and accuracies; None tracks nothing.

    Args:
        events: of one run.
        recipe: noted as the run's settings.
        out: where trackers that write files put them.
        name: one that accelerate knows: tensorboard, wandb, mlflow ...

    Raises:
        InputError: an unknown tracker, or one that is not installed.
    """
    if name is None:
        yield from events
        return
    check_tracker(name)
    iterator = iter(events)
    # The run makes its folder sure before it yields anything; a tracker must not write there earlier.
    first = next(iterator)
    tracker = _tracker(name, recipe, out)
    steps = 0
    try:
        for event in chain([first], iterator):
            if isinstance(event, Step):
                steps += 1
                if steps % _EVERY == 0:
                    right = event.accuracy()
                    told = {} if right is None else {"batch accuracy": right}
                    tracker.log({"loss": float(event.loss), **told}, step=steps)
            elif isinstance(event, Evaluated):
                row = {f"accuracy/{index + 1}": each for index, each in enumerate(event.accuracy)}
                tracker.log(row, step=steps)
            elif isinstance(event, Finished):
                tracker.log({"average accuracy": event.result["average_accuracy"]}, step=steps)
            yield event
    finally:
        tracker.finish()


def tracked_all(
    events: Iterable[tuple[Planned, RunEvent | Failed]], out: Path, name: str | None
) -> Iterator[tuple[Planned, RunEvent | Failed]]:
    """Yield the events of a comparison, with a tracker for each of its runs as `tracked` has for one."""
    if name is None:
        yield from events
        return
    for _, group in groupby(events, key=lambda pair: pair[0].folder):
        first = next(group)
        run = first[0]
        for event in tracked((each for _, each in chain([first], group)), run.recipe, out / run.folder, name):
            yield run, event


def check_tracker(name: str) -> None:
    """Raise `InputError` unless accelerate knows the tracker `name` and it is installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise unknown("tracker", name, LOGGER_TYPE_TO_CLASS)
    if name not in [str(getattr(each, "value", each)) for each in get_available_trackers()]:
        raise InputError(f"tracker {name} is not installed: pip install {name}")


def _tracker(name: str, recipe: Recipe, out: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers ask it whether they are on the main process
    kind = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind("lifelong", **({"logging_dir": str(out)} if kind.requires_logging_directory else {}))
    tracker.start()
    flat = {key: str(each) for key, each in record(recipe).items()}
    tracker.store_init_configuration(flat)
    return tracker
