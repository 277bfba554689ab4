"""One recipe run from one end to the other: train, measure after each task, save, and leave a result."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import filelock
import torch
from safetensors.torch import save
from torch import Tensor, nn

from lifelong import files, tree
from lifelong.allocator import keep_freed_memory
from lifelong.errors import DivergedError, InputError
from lifelong.experiments import build, memory
from lifelong.experiments import result as results
from lifelong.experiments.recipe import Recipe, differences, record
from lifelong.experiments.result import Tally
from lifelong.learner import Learner
from lifelong.methods import Method
from lifelong.models.pretrained.adapters import without_adapters
from lifelong.streams import Scenario, Stream, Task
from lifelong.training import checkpoint, loop, state
from lifelong.training.early_stopping import EarlyStopping
from lifelong.training.evaluation import accuracy, needs_task_id
from lifelong.training.loop import EpochDone, Event, Step, StepsDone, TaskDone, TaskStarted


@dataclass(frozen=True)
class Evaluated:
    """A row of the accuracy matrix: all tasks measured after `learned` of them."""

    learned: int
    accuracy: list[float]


@dataclass(frozen=True)
class Finished:
    """The run is over, and this is its result."""

    result: dict[str, Any]


RunEvent: TypeAlias = Event | Evaluated | Finished
# Two recorded recipes to the names of the settings that they differ in.
Differences: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]


@dataclass
class Run:
    """All that is at work in one run.

    Args:
        recipe: what makes it, and `recorded` what is written down of it.
        stream, learner, method: what the recipe names.
        stopping: the early stop, or None.
        tally: what is counted as it goes.
        folder: where state and result go, or None for a run that leaves nothing on disk.
    """

    recipe: Recipe
    recorded: dict[str, Any]
    stream: Stream
    learner: Learner
    method: Method
    stopping: EarlyStopping | None
    tally: Tally
    folder: Path | None


@dataclass(frozen=True)
class Every:
    """How often state is saved within a task: every `steps` steps, or every `seconds`."""

    steps: int | None = None
    seconds: float | None = 60.0

    @classmethod
    def parse(cls, text: str) -> Every:
        """Return what `500` (steps) or `30s` (seconds) says.

        Raises:
            InputError: neither.
        """
        number = text.removesuffix("s")
        if not number.isdecimal() or int(number) == 0:
            raise InputError(f"checkpoint_every = {text!r} must be a number of steps (500) or of seconds (30s)")
        return cls(None, float(number)) if text.endswith("s") else cls(int(number), None)


def run(
    recipe: Recipe,
    out: Path | None = None,
    *,
    resume: bool = False,
    stream: Stream | None = None,
    model: nn.Module | None = None,
) -> dict[str, Any]:
    """Run `recipe` and return its result, with the fields of `result.json`; arguments as for `events`."""
    for event in events(recipe, out, resume=resume, stream=stream, model=model):
        if isinstance(event, Finished):
            return event.result
    raise AssertionError("a run ends with its result")


def events(
    recipe: Recipe,
    out: Path | None = None,
    *,
    resume: bool = False,
    checkpoint_every: Every | None = None,
    stream: Stream | None = None,
    model: nn.Module | None = None,
) -> Iterator[RunEvent]:
    """Run `recipe`, yielding what happens; the last event is `Finished`.

    Args:
        recipe: what to run.
        out: folder for `recipe.json`, `events.jsonl`, checkpoints, `model.safetensors` and `result.json`; None leaves
            nothing on disk.
        resume: go on from the last checkpoint in `out`, to the bits of a run that was never interrupted.
        checkpoint_every: how often to save within a task; once a minute by default.
        stream: tasks to learn instead of the recipe's.
        model: a classifier to learn with instead of the recipe's.

    Raises:
        InputError: a recipe that cannot be run, or a folder that holds another one.
        StateError: a checkpoint that cannot be read.
        DivergedError: the loss is not a finite number; the last good checkpoint stays.
    """
    if out is None:
        with build.denormals_as_zero():
            yield from _events(_prepare(recipe, None, stream, model), Every())
        return
    with build.denormals_as_zero(), claimed(out, _recorded(recipe, stream), differences, resume):
        yield from _in_folder(recipe, out, checkpoint_every or Every(), stream, model)


@contextlib.contextmanager
def claimed(out: Path, ours: dict[str, Any], differences: Differences, resume: bool) -> Iterator[None]:
    """Make `out` the folder of the recorded recipe `ours`, or check that it is, and keep others from writing there.

    Args:
        differences: names the settings in which two recorded recipes differ.
        resume: a run of this recipe may be there.

    Raises:
        InputError: `out` holds something else, another recipe, or a run of this one that nobody asked to resume, or
            another process writes there.
    """
    _claim(out, ours, differences, resume)
    try:
        with filelock.FileLock(out / ".lock", timeout=0):
            try:
                yield
            except (InputError, DivergedError):
                # Before there was a checkpoint: the recipe that is put right may have the folder.
                names = ("recipe.json", "events.jsonl", ".lock")
                if {each.name for each in out.iterdir()} <= set(names):
                    for name in names:
                        (out / name).unlink(missing_ok=True)
                    # The working directory and mount points stay.
                    with contextlib.suppress(OSError):
                        out.rmdir()
                raise
    except filelock.Timeout:
        raise InputError(f"{out} is being written by another process: wait for it, or choose another --out") from None


def _claim(out: Path, ours: dict[str, Any], differences: Differences, resume: bool) -> None:
    path = out / "recipe.json"
    if path.is_file():
        try:
            theirs = json.loads(path.read_text())
        except ValueError:
            theirs = None
        if not isinstance(theirs, dict):
            raise InputError(f"{path} is not readable: remove {out}, or choose another --out")
        odd = differences(ours, theirs)
        if odd:
            first = odd[0]
            raise InputError(
                f"{out} holds a run of another recipe ({first} = {theirs.get(first)} there, {ours.get(first)} here): "
                "choose another --out"
            )
        if not resume:
            raise InputError(f"{out} holds this run already: add --resume to go on with it, or choose another --out")
        return
    if out.exists() and (not out.is_dir() or any(each.name != ".lock" for each in out.iterdir())):
        raise InputError(f"{out} exists and holds no run: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(path, ours)


def _in_folder(
    recipe: Recipe, out: Path, every: Every, stream: Stream | None, model: nn.Module | None
) -> Iterator[RunEvent]:
    if (out / "result.json").is_file():
        yield Finished(results.read(out / "result.json"))
        return
    saved = checkpoint.load_checkpoint(out / "checkpoints")
    if saved is not None:
        recipe = dataclasses.replace(recipe, threads=saved[0]["threads"])
    running = _prepare(recipe, out, stream, model)
    if saved is not None:
        _restore(running, *saved)
    with open(out / "events.jsonl", "a", encoding="utf-8") as journal:
        for event in _events(running, every):
            line = _line(event)
            if line is not None:
                journal.write(json.dumps(line) + "\n")
                journal.flush()
            yield event


def _prepare(recipe: Recipe, out: Path | None, stream: Stream | None, model: nn.Module | None) -> Run:
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    keep_freed_memory()
    method = build.method(recipe, stream)  # first: a wrong setting should be known before any data is read
    torch.manual_seed(recipe.seed)
    build.set_deterministic(build.device(recipe.device))
    tasks = stream if stream is not None else build.stream(recipe)
    learner = build.learner(recipe, tasks, model)
    stopping = None if recipe.early_stopping is None else EarlyStopping(recipe.early_stopping)
    memory.reset_peak()
    return Run(recipe, _recorded(recipe, stream), tasks, learner, method, stopping, Tally(), out)


def _recorded(recipe: Recipe, stream: Stream | None) -> dict[str, Any]:
    """Return `recipe` as it is written down, under the names of a `stream` that was learned instead of its own."""
    return record(recipe) | ({} if stream is None else {"stream": stream.name, "data": stream.data})


def _events(running: Run, every: Every) -> Iterator[RunEvent]:
    tally, clock = running.tally, running.learner.clock
    if not tally.accuracy:
        yield _evaluate(running, 0)
    last_saved, started = time.monotonic(), time.perf_counter()
    paused = 0.0  # seconds of the task that were spent watching and saving
    for event in loop.train(running.learner, running.method, running.stream, build.schedule(running.recipe)):
        kind = type(event)
        if kind is Step:
            tally.train_samples += len(event.targets)  # type: ignore[union-attr]
            if not event.epoch_ends and due(every, clock.step, last_saved):  # type: ignore[union-attr]
                paused += _save(running, started, paused)
                last_saved = time.monotonic()
        elif isinstance(event, TaskStarted):
            tally.old_samples = max(tally.old_samples, event.old_samples)
            if running.stopping is not None and clock.step == 0:
                running.stopping.start()
            started, paused = time.perf_counter(), 0.0
        elif isinstance(event, EpochDone):
            paused += _watch(running, event)
            if due(every, clock.step, last_saved):
                paused += _save(running, started, paused)
                last_saved = time.monotonic()
        elif isinstance(event, StepsDone):
            if running.stopping is not None:
                running.stopping.finish(running.learner)
            _synchronize(running.learner)
            tally.seconds.train += time.perf_counter() - started - paused
            started = time.perf_counter()
        elif isinstance(event, TaskDone):
            _synchronize(running.learner)
            tally.seconds.consolidate += time.perf_counter() - started
            _measure_expert(running, event.task)
            yield event
            yield _evaluate(running, clock.task)
            _save(running, 0.0, None)
            last_saved = time.monotonic()
            continue
        yield event
    yield Finished(_finish(running))


def due(every: Every, step: int, last_saved: float) -> bool:
    """Return whether state is to be saved at `step`, `last_saved` being a reading of the monotonic clock."""
    if every.steps is not None:
        return step % every.steps == 0
    return every.seconds is not None and time.monotonic() - last_saved >= every.seconds


def _watch(running: Run, event: EpochDone) -> float:
    if running.stopping is None:
        return 0.0
    begun = time.perf_counter()
    running.stopping.look(running.learner, running.method, event.task)
    spent = time.perf_counter() - begun
    running.tally.seconds.evaluate += spent
    return spent


def _evaluate(running: Run, learned: int) -> Evaluated:
    begun = time.perf_counter()
    row = _accuracies(running, running.stream.tasks)
    running.tally.accuracy.append(row)
    if learned in (0, len(running.stream)) and running.stream.unseen:
        running.tally.unseen_accuracy.append(_accuracies(running, running.stream.unseen))
    running.tally.seconds.evaluate += time.perf_counter() - begun
    return Evaluated(learned, row)


def _measure_expert(running: Run, task: Task) -> None:
    """Note how well the network as it was trained, and not what it was merged into, answers for `task`.

    It is asked for the task's own classes alone, as it may have been trained on these alone.
    """
    if not _merges(running.method):
        return
    begun = time.perf_counter()
    split = task.test if running.recipe.evaluate_on == "test" else task.validation
    own = task.classes if running.learner.scenario is Scenario.CLASS else None
    running.tally.expert_accuracy.append(accuracy(running.learner, Method(), task, split, own))
    running.tally.test_samples += len(split)
    running.tally.seconds.evaluate += time.perf_counter() - begun


def _accuracies(running: Run, tasks: Sequence[Task]) -> list[float]:
    on_test = running.recipe.evaluate_on == "test"
    splits = [task.test if on_test else task.validation for task in tasks]
    running.tally.test_samples += sum(len(split) for split in splits)
    return [accuracy(running.learner, running.method, task, split) for task, split in zip(tasks, splits, strict=True)]


def _save(running: Run, started: float, paused: float | None) -> float:
    """Save the state; `paused` is None between tasks. Returns the seconds that it took."""
    begun = time.perf_counter()
    running.tally.peak_rss_bytes = max(running.tally.peak_rss_bytes, memory.peak_bytes())
    if running.folder is not None:
        tensors: dict[str, Tensor] = {}
        tally = dataclasses.asdict(running.tally)
        if paused is not None:
            tally["seconds"]["train"] += begun - started - paused
        content = {
            "threads": torch.get_num_threads(),
            "learner": state.save_learner(running.learner, tensors),
            "method": state.capture(running.method, "method", tensors),
            "stopping": state.capture(running.stopping, "stopping", tensors),
            "tally": tally,
        }
        checkpoint.save_checkpoint(
            running.folder / "checkpoints",
            running.learner.clock.total_steps + running.learner.clock.task,
            content,
            tensors,
        )
    return time.perf_counter() - begun


def _restore(running: Run, saved: Any, tensors: dict[str, Tensor]) -> None:
    learner = running.learner
    state.restore(running.method, saved["method"], "method", tensors, learner.device)
    keep = running.recipe.keep_optimizer
    state.load_learner(learner, running.method, running.stream, saved["learner"], tensors, keep)
    if running.stopping is not None:
        state.restore(running.stopping, saved["stopping"], "stopping", tensors, learner.device)
    state.restore(running.tally, saved["tally"], "tally", tensors, learner.device)


def _finish(running: Run) -> dict[str, Any]:
    recipe, tally, stream = running.recipe, running.tally, running.stream
    tally.peak_rss_bytes = max(tally.peak_rss_bytes, memory.peak_bytes())
    weights = [len(task.test) for task in stream.tasks] if stream.scenario is Scenario.CLASS else None
    model = running.method.weights(running.learner)
    stored = _stored(running)
    result = {
        "recipe": running.recorded,
        "experiment": None,
        "label": recipe.method,
        "method": recipe.method,
        "settings": _settings(running.method),
        "seed": recipe.seed,
        "stream": stream.name,
        "data": stream.data,
        "scenario": stream.scenario.value,
        "tasks": [task.name for task in stream.tasks],
        "scores": ["accuracy" if task.scale is None else "r2" for task in stream.tasks],
        "scales": [task.scale for task in stream.tasks],
        "accuracy": tally.accuracy,
        **results.measures(tally.accuracy, weights),
        "merging": results.of_merging(tally, running.method.measures()) if _merges(running.method) else None,
        **results.of_unseen([task.name for task in stream.unseen], tally.unseen_accuracy),
        "seconds": {**dataclasses.asdict(tally.seconds), "total": tally.seconds.total},
        "train_samples_per_second": tally.train_samples / max(tally.seconds.train, 1e-9),
        "predict_samples_per_second": tally.test_samples / max(tally.seconds.evaluate, 1e-9),
        "memory": {
            "model_bytes": sum(tensor.numel() * tensor.element_size() for tensor in model.values()),
            "method_bytes": state.method_bytes(running.method) + stored.outside,
            "stored_samples": stored.samples,
            "stored_bytes": stored.inside + stored.outside,
            "peak_rss_bytes": tally.peak_rss_bytes,
        },
        "needs_old_data": stored.samples > 0,
        "needs_task_id": needs_task_id(running.learner, running.method, stream.tasks),
        "parameters": tree.size(tree.parameters(running.learner.model)),
        "device": str(running.learner.device),
        "threads": torch.get_num_threads(),
        "expected": None,
        **results.surroundings(),
    }
    if running.folder is not None:
        plain = without_adapters(running.learner.model, model)
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in plain.items()}
        files.write_file(running.folder / "model.safetensors", save(whole))
        files.write_json(running.folder / "result.json", result)
    return result


@dataclass(frozen=True)
class _Stored:
    """How many samples of old tasks a run needs, and their bytes inside and outside of the method."""

    samples: int
    inside: int
    outside: int


def _stored(running: Run) -> _Stored:
    buffers = list(state.buffers(running.method))
    held = sum(map(len, buffers))
    # Joint training reads old tasks whole, which no buffer of the method holds.
    read = max(0, running.tally.old_samples - held)
    split = running.stream.tasks[0].train
    return _Stored(held + read, sum(each.nbytes for each in buffers), read * split.nbytes // len(split))


def _settings(method: Method) -> dict[str, Any]:
    from lifelong.methods import Chain
    from lifelong.settings import fields

    if isinstance(method, Chain):
        return {name: _settings(part) for name, part in method.methods.items()}
    return {field.name: getattr(method, field.name) for field in fields(type(method))}


def _merges(method: Method) -> bool:
    from lifelong.methods import Chain

    return any(each.merges for each in (method.methods.values() if isinstance(method, Chain) else [method]))


def _line(event: RunEvent) -> dict[str, Any] | None:
    """Return what `events.jsonl` says of `event`, or None for one that it leaves out."""
    if isinstance(event, TaskStarted):
        return {"event": "task started", "task": event.task.name, "steps": event.steps}
    if isinstance(event, Evaluated):
        return {"event": "evaluated", "learned": event.learned, "accuracy": event.accuracy}
    if isinstance(event, Finished):
        return {"event": "finished", "average_accuracy": event.result["average_accuracy"]}
    return None


def _synchronize(learner: Learner) -> None:
    if learner.device.type != "cpu":
        torch.accelerator.synchronize(learner.device)
