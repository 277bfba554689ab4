"""One meta-training from one end to the other: train, save, test, and leave a result and weights to start from."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from lifelong import randomness, tree
from lifelong.allocator import keep_freed_memory
from lifelong.errors import DivergedError, InputError, StateError
from lifelong.experiments import memory, meta_build, meta_tasks
from lifelong.experiments import result as results
from lifelong.experiments.build import denormals_as_zero, device, set_deterministic
from lifelong.experiments.meta_example import example
from lifelong.experiments.meta_recipe import SINUSOIDS, MetaRecipe, filled, meta_differences, meta_recipe, meta_record
from lifelong.experiments.run import Every, Finished, claimed, due
from lifelong.files import write_file, write_json
from lifelong.meta import ALGORITHMS
from lifelong.meta.engine import Engine
from lifelong.meta.episodes import Source
from lifelong.training import checkpoint, state
from lifelong.training.meta_evaluation import Adaptation, evaluate
from lifelong.training.meta_loop import Iteration, MetaEvent, MetaTraining, Validated, meta_train, settled
from lifelong.tree import Params

# Points of the training curve that a result holds, each the mean over the iterations since the one before.
_POINTS = 200

# What a result must have to be shown.
_SHOWN = {
    *("recipe", "algorithm", "data", "seed", "measure", "test", "interval", "calibration", "curve", "validation"),
    *("test_tasks", "seconds_per_task", "iterations", "seconds", "tasks_per_second", "memory"),
}


@dataclass(frozen=True)
class Started:
    """Training begins, or goes on, computed this way."""

    engine: Engine
    iteration: int


MetaRunEvent: TypeAlias = MetaEvent | Started | Finished


@dataclass
class MetaTally:
    """What a meta-training counts as it goes; a checkpoint holds it.

    Args:
        curve: `[iteration, loss, score]`, means over some iterations each.
        sums: of loss and score since the last point of the curve, and their number.
        validation: `[iteration, scores after each step]`.
        seconds: of training and of looking at validation tasks.
    """

    curve: list[list[float]] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    validation: list[list[Any]] = field(default_factory=list)
    seconds: float = 0.0


def meta_events(
    recipe: MetaRecipe, out: Path, *, resume: bool = False, checkpoint_every: Every | None = None
) -> Iterator[MetaRunEvent]:
    """Train and test as `recipe` says, yielding what happens; the last event is `Finished`.

    Args:
        recipe: what to do.
        out: folder for `recipe.json`, checkpoints, `meta.safetensors` (all that was meta-learned),
            `model.safetensors` (the network, for `lifelong run --weights`) and `result.json`.
        resume: go on from the last checkpoint in `out`, to the bits of a training that was never interrupted.
        checkpoint_every: how often to save; once a minute by default.

    Raises:
        InputError: a recipe that cannot be run, or a folder that holds another one.
        StateError: a checkpoint that cannot be read.
        DivergedError: a training task's loss is not a finite number, and the last good checkpoint stays; or a test
            task's answers, and what was trained is written.
    """
    made = meta_build.algorithm(recipe)  # first: a wrong setting should be known before any data is read
    with denormals_as_zero(), claimed(out, meta_record(recipe), meta_differences, resume):
        set_deterministic(device(recipe.device))
        keep_freed_memory()
        memory.reset_peak()
        if (out / "result.json").is_file():
            yield Finished(read_meta(out / "result.json"))
            return
        tasks = meta_tasks.sources(recipe)
        _judged(recipe, tasks)  # refused now, not when training has ended
        if recipe.patience is not None and tasks.validation is None:
            raise InputError(f"patience = {recipe.patience} watches validation tasks: set {_of_validation(recipe)}")
        saved = checkpoint.load_checkpoint(out / "checkpoints")
        how = _as_before(recipe, saved[0]["engine"]) if saved else meta_build.choose_engine(recipe, tasks, made)
        training = meta_build.training(recipe, tasks, made, how)
        tally = MetaTally()
        if saved is not None:
            _restore(training, tally, *saved)
        yield from _train(recipe, tasks, training, tally, out, checkpoint_every or Every())


def _as_before(recipe: MetaRecipe, engine: Mapping[str, Any]) -> Engine:
    """Return the engine of a checkpoint; what `recipe` sets by hand may be other now, to take less memory."""
    given = {"formulation": recipe.formulation, "tasks_at_once": recipe.tasks_at_once, "threads": recipe.threads}
    return Engine(**{**engine, **{name: each for name, each in given.items() if each not in ("auto", None)}})


def _train(
    recipe: MetaRecipe,
    tasks: meta_tasks.Sources,
    training: MetaTraining,
    tally: MetaTally,
    out: Path,
    every: Every,
) -> Iterator[MetaRunEvent]:
    yield Started(training.engine, training.iteration)
    last_saved, begun = time.monotonic(), time.perf_counter()
    size = max(1, recipe.iterations // _POINTS)
    for event in meta_train(training, tasks.train, meta_build.schedule(recipe), tasks.validation):
        now = time.perf_counter()
        tally.seconds, begun = tally.seconds + now - begun, now
        if isinstance(event, Validated):
            tally.validation.append([event.iteration, event.found.score, event.found.interval])
        elif isinstance(event, Iteration):
            _count(tally, event, size)
            if due(every, event.iteration, last_saved):
                _save(training, tally, out)
                last_saved = time.monotonic()
        yield event
        begun = time.perf_counter()
    yield Finished(_finish(recipe, tasks, training, tally, out))


def _count(tally: MetaTally, event: Iteration, size: int) -> None:
    loss, score, count = tally.sums
    loss, score, count = loss + event.loss, score + event.score, count + 1
    if event.iteration % size == 0:
        tally.curve.append([event.iteration, loss / count, score / count])
        loss = score = count = 0.0
    tally.sums = [loss, score, count]


def _save(training: MetaTraining, tally: MetaTally, out: Path) -> None:
    tensors: dict[str, Tensor] = {}
    content = {
        "engine": dataclasses.asdict(training.engine),
        "meta": state.capture(training.meta, "meta", tensors),
        "buffers": state.capture(training.buffers, "buffers", tensors),
        "best_meta": state.capture(training.best_meta, "best", tensors),
        "best_buffers": state.capture(training.best_buffers, "best_buffers", tensors),
        "optimizer": state.capture(training.optimizer.state_dict(), "optimizer", tensors),
        "position": [training.iteration, training.best, training.waited],
        "tally": dataclasses.asdict(tally),
    }
    checkpoint.save_checkpoint(out / "checkpoints", training.iteration, content, tensors)


def _restore(training: MetaTraining, tally: MetaTally, saved: Any, tensors: dict[str, Tensor]) -> None:
    where = next(iter(training.meta.values())).device
    tree.copy_(training.meta, state.restore({}, saved["meta"], "meta", tensors, where))
    training.buffers = state.restore({}, saved["buffers"], "buffers", tensors, where)
    training.best_meta = state.restore({}, saved["best_meta"], "best", tensors, where)
    # Older checkpoints have none, and their trainings ended with the last ones.
    kept = saved.get("best_buffers", saved["buffers"])
    training.best_buffers = state.restore({}, kept, "best_buffers", tensors, where)
    state.load_optimizer(training.optimizer, saved["optimizer"], tensors)
    training.iteration, training.best, training.waited = saved["position"]
    state.restore(tally, saved["tally"], "tally", tensors, where)


def _finish(
    recipe: MetaRecipe, tasks: meta_tasks.Sources, training: MetaTraining, tally: MetaTally, out: Path
) -> dict[str, Any]:
    # Before the test, which may diverge: another one can be made of what was trained.
    write_file(out / "meta.safetensors", save(_whole({**training.meta, **_prefixed(training.buffers)})))
    write_file(out / "model.safetensors", save(_whole(_network(recipe, tasks, training.meta))))
    judged = _judged(recipe, tasks)
    try:
        found = _tested(recipe, training, training.buffers, judged)
    except DivergedError as error:
        raise DivergedError(
            f"{error}; what was trained is kept, and `lifelong meta test {out} --algorithm.SETTING VALUE` tests it anew"
        ) from error
    result = {
        "kind": "meta",
        "recipe": _recorded(recipe, tasks),
        "algorithm": recipe.algorithm,
        "settings": dataclasses.asdict(training.algorithm),
        "data": recipe.data,
        "seed": recipe.seed,
        "measure": "mean squared error" if recipe.data == SINUSOIDS else "accuracy",
        "iterations": training.iteration,
        "best_validation": training.best,
        **test_record(found),
        "batch_norm": training.problem.network.normalises,
        "inverted": tasks.inverted,
        "classes": dict(zip(("train", "validation", "test"), tasks.classes, strict=True)),
        "example": example(training, judged),
        "curve": tally.curve,
        "validation": tally.validation,
        "seconds": tally.seconds,
        "tasks_per_second": training.iteration * recipe.tasks / max(tally.seconds, 1e-9),
        "engine": dataclasses.asdict(training.engine),
        "memory": {"peak_rss_bytes": memory.peak_bytes()},
        "parameters": tree.size(training.meta),
        "device": str(next(iter(training.meta.values())).device),
        **results.surroundings(),
    }
    write_json(out / "result.json", result)
    return result


def _recorded(recipe: MetaRecipe, tasks: meta_tasks.Sources) -> dict[str, Any]:
    """Return `recipe` as results tell it: with the network that was trained, where it names none."""
    return meta_record(filled(recipe, tuple(tasks.train.sample().shape[1:])))


def test_record(found: Adaptation) -> dict[str, Any]:
    """Return what evaluation found under the names that results have for it."""
    return {
        "test": found.score,
        "interval": found.interval,
        "calibration": found.calibration,
        "test_tasks": found.tasks,
        "seconds_per_task": found.seconds_per_task,
    }


def meta_test(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Return how well the meta-learner that was trained in `folder` adapts to test tasks.

    Args:
        folder: holds `recipe.json` and `meta.safetensors`.
        changes: settings that are other than in training: `ways`, `shots`, `queries`, `statistics`, `test_tasks` ...

    Raises:
        InputError: nothing was trained there, the network cannot do such tasks, or it was trained on their classes.
        DivergedError: a task's answers are not finite numbers.
    """
    try:
        values = {**json.loads((folder / "recipe.json").read_text())}
        stored = (folder / "meta.safetensors").read_bytes()
    except (OSError, TypeError, ValueError):
        raise InputError(f"{folder} holds no finished meta-training: give the --out of `lifelong meta train`") from None
    try:
        tensors = load(stored)
    except SafetensorError as error:
        raise StateError(
            f"{folder / 'meta.safetensors'} is damaged ({error}): train again, into another --out"
        ) from error
    trained = meta_recipe(values)
    recipe = _of_test(trained, meta_recipe({**values, **changes}))
    made = meta_build.algorithm(recipe)
    _check_unseen(folder, trained, recipe)
    # Weights that are not meta-learned are what the seed of training made of them; that of a test draws its tasks.
    as_built = dataclasses.replace(recipe, seed=trained.seed)
    tasks = meta_tasks.sources(as_built)
    how = meta_build.whole_engine(as_built) or _test_engine(as_built, tasks)
    training = meta_build.training(as_built, tasks, made, how)
    found = {name: each.to(next(iter(training.meta.values())).device) for name, each in tensors.items()}
    meta = {name: each for name, each in found.items() if not name.startswith("buffer.")}
    _check_shapes(folder, training.meta, meta)
    tree.copy_(training.meta, meta)
    training.buffers = {name.removeprefix("buffer."): found[name] for name in found.keys() - meta.keys()}
    reached = _tested(recipe, training, settled(training, tasks.train), _judged(recipe, tasks))
    return {
        "kind": "meta",
        "recipe": _recorded(recipe, tasks),
        **test_record(reached),
        "batch_norm": training.problem.network.normalises,
        **results.surroundings(),
    }


def _of_test(trained: MetaRecipe, asked: MetaRecipe) -> MetaRecipe:
    """Return `asked` with training as it was in `trained`, of whose validation tasks none are looked at.

    Raises:
        InputError: other ways, where a head was learned.
    """
    without_ways = asked.domains or asked.data == SINUSOIDS
    if not without_ways and not ALGORITHMS[trained.algorithm].any_ways and asked.ways != trained.ways:
        raise InputError(f"ways = {asked.ways}: the head that {trained.algorithm} learned has {trained.ways} outputs")
    return dataclasses.replace(
        asked,
        train_ways=None if without_ways else trained.train_ways or trained.ways,
        train_shots=trained.train_shots or trained.shots,
        train_queries=trained.train_queries or trained.queries,
        validate_every=0,
        patience=None,
    )


def _check_unseen(folder: Path, trained: MetaRecipe, recipe: MetaRecipe) -> None:
    """Refuse tasks of classes, or domains, that the training in `folder` has seen."""
    seen = meta_tasks.seen(trained, recipe)
    if seen:
        kind = "domain" if recipe.domains else "class"
        more = f", and {len(seen) - 1} others of its {recipe.evaluate_on} tasks" if len(seen) > 1 else ""
        raise InputError(
            f"the meta-learner in {folder} was trained on {kind} {seen[0]}{more}: test it on what it has not seen, by "
            "the split_seed, and the numbers of classes or names of domains, that it was trained with"
        )


def _judged(recipe: MetaRecipe, tasks: meta_tasks.Sources) -> Source:
    """Return the tasks that the final score is measured on."""
    judged = tasks.validation if recipe.evaluate_on == "validation" else tasks.test
    if judged is None:
        raise InputError(f"evaluate_on validation needs such tasks: set {_of_validation(recipe)}")
    return judged


def _of_validation(recipe: MetaRecipe) -> str:
    return "validation_data" if recipe.domains else "validation_classes"


def _tested(recipe: MetaRecipe, training: MetaTraining, buffers: Params, judged: Source) -> Adaptation:
    return evaluate(
        training.algorithm,
        training.problem,
        training.engine,
        training.meta,
        buffers,
        judged,
        tasks=recipe.test_tasks,
        seed=recipe.seed,
        purpose=recipe.evaluate_on,
    )


def read_meta(path: Path) -> dict[str, Any]:
    """Return the result of a meta-training in the file `path`.

    Raises:
        StateError: not readable, or not such a result.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"{path} is not a readable result: {error}; remove it to run again") from error
    if not isinstance(result, dict) or result.get("kind") != "meta" or not result.keys() >= _SHOWN:
        raise StateError(f"{path} is not the result of a meta-training; remove it to run again")
    return result


def _network(recipe: MetaRecipe, tasks: meta_tasks.Sources, meta: Params) -> Params:
    """Return all weights of the network as other commands know them, batch norm with running statistics.

    Adaptation needs none; a stream that starts from these weights does, so they are measured on training tasks.
    """
    trunk, head = meta_build.trunk(recipe, tasks.train.sample(), tasks.test.outputs)
    whole = nn.ModuleDict({"trunk": trunk, "head": head})
    held = {name: each.detach() for name, each in meta.items()}
    tree.copy_(
        {name: each for name, each in tree.weights(whole).items() if name in held},
        {name: each for name, each in held.items() if name in tree.weights(whole)},
    )
    norms = [each for each in trunk.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return tree.weights(whole)
    for each in norms:
        each.momentum = None  # the mean over batches
        each.reset_running_stats()
    trunk.train()
    drawn = tasks.train.draw(100, randomness.generator(recipe.seed, "statistics"))
    with torch.no_grad():
        for inputs in drawn.support.flatten(0, 1).split(128):
            if len(inputs) > 1:
                trunk(inputs)
    return tree.weights(whole)


def _test_engine(recipe: MetaRecipe, tasks: meta_tasks.Sources) -> Engine:
    """Return an engine for tests: what is set by hand, and otherwise small chunks in the likeliest formulation."""
    from lifelong.meta import engine

    trunk = meta_build.problem(recipe, tasks, "loop").network.trunk
    first = engine.candidates(trunk, tasks.test.sample(), 16, recipe.threads or 1)[0]
    chosen = first.formulation if recipe.formulation == "auto" else recipe.formulation
    size = 8 if recipe.tasks_at_once == "auto" else recipe.tasks_at_once
    return Engine(chosen, size, first.threads)


def _check_shapes(folder: Path, wanted: Params, found: Params) -> None:
    for name, each in wanted.items():
        if name not in found:
            raise InputError(f"{folder} has no {name}: it was trained with another algorithm or network")
        if found[name].shape != each.shape:
            raise InputError(
                f"{name} has the shape {list(found[name].shape)} in {folder}, and {list(each.shape)} would be needed: "
                "test on samples of the size and kind that it was trained on (data, image_size, target)"
            )


def _prefixed(buffers: Params) -> Params:
    return {f"buffer.{name}": each for name, each in buffers.items()}


def _whole(tensors: Params) -> Params:
    return {name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()}
