"""Several methods, several seeds: run what is not finished, and gather the results."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifelong import files
from lifelong.errors import DivergedError, InputError, StateError
from lifelong.experiments import build
from lifelong.experiments import result as results
from lifelong.experiments.plan import Planned
from lifelong.experiments.recipe import differences, record, stream_of
from lifelong.experiments.run import Every, Finished, RunEvent, events
from lifelong.merging.workers import processors


@dataclass(frozen=True)
class Failed:
    """A run ended without a result, and the others go on."""

    reason: str


def compare(
    planned: Sequence[Planned], out: Path, *, workers: int = 1, checkpoint_every: Every | None = None
) -> Iterator[tuple[Planned, RunEvent | Failed]]:
    """Run what is `planned` and not yet finished in `out`, yielding what happens in each run.

    Args:
        planned: the runs; finished ones are not run again, half-done ones are resumed.
        out: the comparison's folder; gets `DIR/<method>/seed-<n>/` and, at the end, `results.json`.
        workers: processes that share the runs; with more than one, only the ends of runs are reported.
        checkpoint_every: how often to save within a task.

    Raises:
        InputError: a folder that holds something else, runs of another recipe, or a method that cannot do its run.
    """
    for run in planned:
        # What is refused should not wait for others to finish.
        build.method(run.recipe)
        build.device(run.recipe.device)
    _claim(planned, out)
    cores = processors()
    share = [
        run if run.recipe.threads else dataclasses.replace(run, recipe=_with_threads(run, max(1, cores // workers)))
        for run in planned
    ]
    try:
        if workers == 1:
            yield from _one_by_one(share, out, checkpoint_every)
        else:
            yield from _spread(share, out, workers, checkpoint_every)
    finally:
        # Whatever ends a comparison, what was finished can be reported.
        if out.is_dir():
            files.write_json(out / "results.json", together(planned, out))


def gather(planned: Sequence[Planned], out: Path) -> list[dict[str, Any]]:
    """Return the results of those `planned` runs that are finished in `out`, with intransigence where it is known."""
    found = []
    for run in planned:
        path = out / run.folder / "result.json"
        if path.is_file():
            expected = None if run.expected is None else {key: list(pair) for key, pair in run.expected.items()}
            found.append({**results.read(path), "experiment": run.experiment, "label": run.label, "expected": expected})
    results.fill_intransigence(found)
    return found


def together(planned: Sequence[Planned], out: Path) -> list[dict[str, Any]]:
    """Return what `gather` does, after what earlier comparisons in `out` left of the same streams or other experiments.

    Rows that are run one by one, or on several machines, make one table so.
    """
    ours = {run.folder for run in planned}
    streams: dict[str | None, list[dict[str, Any]]] = {}
    for run in planned:
        streams.setdefault(run.experiment, []).append(stream_of(record(run.recipe)))

    def stays(earlier: dict[str, Any]) -> bool:
        folder = Path(earlier["experiment"] or "", earlier["label"], f"seed-{earlier['seed']}")
        beside = streams.get(earlier["experiment"])
        alike = stream_of(earlier["recipe"]) in beside if beside else None not in (earlier["experiment"], *streams)
        return folder not in ours and (out / folder / "result.json").is_file() and alike

    found = [each for each in _earlier(out) if stays(each)] + gather(planned, out)
    results.fill_intransigence(found)
    return found


def _earlier(out: Path) -> list[dict[str, Any]]:
    """Return what an earlier comparison gathered in `out`; nothing where that is missing or unreadable."""
    try:
        return results.read_all(out / "results.json")
    except StateError:
        return []


def _claim(planned: Sequence[Planned], out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: choose another --out")
    # Another process may have begun one there, of other rows or experiments, that has no results yet.
    held = any(out.glob("*/seed-*/recipe.json")) or any(out.glob("*/*/seed-*/recipe.json"))
    if out.is_dir() and any(out.iterdir()) and not (out / "results.json").is_file() and not held:
        raise InputError(f"{out} exists and holds no comparison: choose another --out")
    for run in planned:
        path = out / run.folder / "recipe.json"
        if path.is_file():
            theirs = _recipe(path)
            odd = differences(record(run.recipe), theirs)
            if odd:
                ours = record(run.recipe)
                raise InputError(
                    f"{path.parent} holds a run of another recipe ({odd[0]} = {theirs.get(odd[0])} there, "
                    f"{ours.get(odd[0])} here): choose another --out"
                )


def _recipe(path: Path) -> dict[str, Any]:
    import json

    try:
        values = json.loads(path.read_text())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not readable: remove {path.parent}, or choose another --out")
    return values


def _with_threads(run: Planned, threads: int) -> Any:
    return dataclasses.replace(run.recipe, threads=threads)


def _one_by_one(
    planned: Sequence[Planned], out: Path, every: Every | None
) -> Iterator[tuple[Planned, RunEvent | Failed]]:
    for run in planned:
        try:
            for event in events(run.recipe, out / run.folder, resume=True, checkpoint_every=every):
                yield run, event
        except DivergedError as error:
            yield run, Failed(str(error))


def _spread(
    planned: Sequence[Planned], out: Path, workers: int, every: Every | None
) -> Iterator[tuple[Planned, RunEvent | Failed]]:
    from joblib import Parallel, delayed

    jobs = Parallel(n_jobs=workers, return_as="generator_unordered")
    for index, end in jobs(delayed(_finish)(index, run, out, every) for index, run in enumerate(planned)):
        yield planned[index], end


def _finish(index: int, run: Planned, out: Path, every: Every | None) -> tuple[int, Finished | Failed]:
    end: Finished | Failed = Failed("the run was interrupted")
    for _, event in _one_by_one([run], out, every):
        if isinstance(event, Finished | Failed):
            end = event
    return index, end
