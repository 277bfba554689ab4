"""From a recipe to what it names: stream, learner, method, schedule."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lifelong import models, randomness, streams
from lifelong.data import Dataset, load
from lifelong.data.dataset import NUMBER
from lifelong.data.features import features
from lifelong.errors import InputError
from lifelong.experiments.fixed_heads import fixed_head
from lifelong.experiments.pictures import arranged
from lifelong.experiments.recipe import Recipe, read_weights
from lifelong.experiments.start import network_of
from lifelong.learner import Learner
from lifelong.methods import METHODS, Chain, Method
from lifelong.methods import build as build_method
from lifelong.methods.overview import spelled
from lifelong.models import HeadKind, with_head
from lifelong.models.network import feature_width, without_head
from lifelong.models.weights import load_trunk
from lifelong.streams import Scenario, Split, Stream
from lifelong.streams.assemble import Cut
from lifelong.streams.transforms import Augment
from lifelong.training.loop import Schedule
from lifelong.training.optimizers import make_optimizer, rate_schedule

# Of pretrained networks, which are large: gigabytes of activations and of their gradients otherwise.
_LARGEST = 64

_HEAD_OF: dict[Scenario, HeadKind] = {
    Scenario.TASK: "multi",
    Scenario.DOMAIN: "single",
    Scenario.CLASS: "growing",
}


def stream(recipe: Recipe) -> Stream:
    """Return the stream of `recipe`, reading its data.

    Raises:
        InputError: data that cannot be had, or that the stream or the scenario does not fit.
    """
    scenario = _scenario(recipe)
    cut = Cut(recipe.validation, recipe.train_samples, recipe.test_samples, recipe.standardize, recipe.seed)
    learned = recipe.data.split(",") if recipe.stream == "domains" else [recipe.data]
    names = [*learned, *(recipe.unseen.split(",") if recipe.unseen else [])]
    sets = [arranged(_loaded(recipe, *each), recipe) for each in zip(names, _targets(recipe, names), strict=True)]
    if _only_head(recipe):
        if recipe.stream in ("permuted", "rotated"):
            raise InputError(
                f"model.learn head computes features once, and stream {recipe.stream} changes what they are made of: "
                "take learn all and method feature-extraction with learn_first false"
            )
        sets = _featured(recipe, sets)
    if recipe.stream == "domains":
        some, others = sets[: len(learned)], sets[len(learned) :]
        return streams.domains(some, unseen=others, scenario=scenario, seed=recipe.seed, cut=cut)
    if recipe.stream == "permuted":
        return streams.permuted(
            sets[0],
            tasks=recipe.tasks,
            scenario=scenario,
            first_unpermuted=recipe.first_unpermuted,
            seed=recipe.seed,
            cut=cut,
        )
    if recipe.stream == "rotated":
        return streams.rotated(
            sets[0], tasks=recipe.tasks, scenario=scenario, angles=recipe.angles, seed=recipe.seed, cut=cut
        )
    if recipe.stream == "blurry":
        return streams.blurry(
            sets[0],
            tasks=recipe.tasks,
            blur=recipe.blur,
            classes_per_task=recipe.classes_per_task,
            shuffle_classes=recipe.shuffle_classes,
            seed=recipe.seed,
            cut=cut,
        )
    return streams.split(
        sets[0],
        tasks=recipe.tasks,
        scenario=scenario,
        classes_per_task=recipe.classes_per_task,
        shuffle_classes=recipe.shuffle_classes,
        seed=recipe.seed,
        cut=cut,
    )


def method(recipe: Recipe, stream: Stream | None = None) -> Method:
    """Return the method of `recipe`.

    Args:
        stream: learned instead of the recipe's.

    Raises:
        InputError: an unknown method or setting, or a scenario, a stream or a kind of target that it cannot do.
    """
    made = build_method(recipe.method, recipe.method_settings)
    scenario = _scenario(recipe) if stream is None else stream.scenario
    bounded = recipe.stream not in streams.UNBOUNDED if stream is None else stream.boundaries
    numbers = NUMBER in (recipe.target or "") if stream is None else any(task.scale for task in stream.tasks)
    for name, part in made.methods.items() if isinstance(made, Chain) else [(recipe.method, made)]:
        if scenario not in part.scenarios:
            can = ", ".join(each.value for each in part.scenarios)
            raise InputError(f"method {name} cannot do scenario {scenario.value}: it can do {can}")
        if part.needs_boundaries() and not bounded:
            raise _unbounded(name, recipe.stream if stream is None else stream.name)
        if numbers and not part.predicts_numbers():
            settings = ", under its settings," if part.regression else ""
            raise InputError(
                f"method {name} is{settings} for classes, and a target is a number to predict: take naive, ewc, lwf, "
                "er, magmax or another that `lifelong list methods` says can do numbers"
            )
    if numbers and recipe.head_rows != "learned":
        raise InputError(f"head_rows = {recipe.head_rows} is for classes, and a target is a number to predict")
    return made


def learner(recipe: Recipe, stream: Stream, module: torch.nn.Module | None = None) -> Learner:
    """Return the freshly initialised learner of `recipe`.

    Args:
        module: a classifier to learn with instead of the recipe's; its last linear layer is replaced by the head.

    Raises:
        InputError: an unknown model, optimiser or device, a model that the samples do not fit, or weights that do not
            fit the model.
    """
    shape = stream.input_shape
    if module is not None:
        trunk = _with_weights(recipe, without_head(module, recipe.model_settings.get("head_name")))
    else:
        trunk = _trunk(recipe, shape)
    chosen = models.pretrained_settings(recipe.model, recipe.model_settings)
    factors = {} if chosen is None or chosen.learn == "head" else _prepared(trunk, chosen, recipe.seed)
    if (recipe.flip or recipe.crop) and len(shape) != 3:
        raise InputError(f"flip and crop are for images [channels, height, width], and the data has {shape}")
    if recipe.crop and recipe.crop >= min(shape[1:]):
        raise InputError(
            f"crop = {recipe.crop} shifts images of {shape[1]} x {shape[2]} pixels out of sight: "
            f"take {min(shape[1:]) - 1} at most"
        )
    split = stream.tasks[0].train
    sample = split.scaled(torch.zeros(2, *shape, dtype=split.inputs.dtype))
    classes = tuple(len(task.classes) for task in stream.tasks)
    head, mask_unseen = _head(recipe, stream)
    network = with_head(
        trunk,
        head,
        sample=sample,
        classes=classes,
        outputs=len(stream.classes),
        mask_unseen=mask_unseen,
        seed=recipe.seed,
        fixed=fixed_head(recipe, stream, trunk),
    )
    where = device(recipe.device)
    return Learner(
        network.to(where),
        make_optimizer(recipe.optimizer, recipe.lr, recipe.optimizer_settings, factors),
        stream.scenario,
        seed=recipe.seed,
        device=where,
        autocast=torch.bfloat16 if recipe.precision == "bf16" else None,
        largest_batch=2**31 if chosen is None else _LARGEST,
        planned_tasks=len(stream),
        planned_classes=classes,
        boundaries=stream.boundaries,
    )


def schedule(recipe: Recipe) -> Schedule:
    """Return how long and how fast `recipe` trains each task."""
    return Schedule(
        recipe.batch_size,
        recipe.epochs,
        recipe.steps,
        rate_schedule(recipe.schedule, recipe.warmup),
        recipe.clip,
        recipe.keep_optimizer,
        Augment(recipe.flip, recipe.crop) if recipe.flip or recipe.crop else None,
    )


def device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the machine's accelerator, or the CPU.

    Raises:
        InputError: no such device on this machine.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        where = torch.device(name)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} is not to be had here: {str(error).splitlines()[0]}") from error
    return where


def set_deterministic(where: torch.device) -> None:
    """Have this process compute the same bits from the same seed on `where`."""
    if where.type == "cuda":
        # Some kernels of the GPU add in any order.
        torch.use_deterministic_algorithms(True, warn_only=True)


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Take numbers that are too small for their format, in float32 below 1e-38, for zero meanwhile.

    Gradients that vanish for good, as those of a task's empty pixels and of units that a mask holds, leave averages in
    the optimiser that shrink until they are denormal, and a CPU takes several times as long for a step of Adam on such
    (`benchmarks/denormals.py`). Of the threads that share the work those take part that start meanwhile.
    """
    # PyTorch does not tell how it is set.
    before = float(torch.tensor(2e-38) / 4) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _targets(recipe: Recipe, names: Sequence[str]) -> list[str | None]:
    """Return the name of the target of each data set, None for the usual one."""
    found = recipe.target.split(",") if recipe.target and recipe.stream == "domains" else [recipe.target]
    if len(found) not in (1, len(names)):
        raise InputError(
            f"target = {recipe.target} names {len(found)} columns for {len(names)} data sets: give one for all, or one "
            "for each"
        )
    return [each or None for each in (found if len(found) > 1 else found * len(names))]


def _loaded(recipe: Recipe, name: str, target: str | None) -> Dataset:
    return load(
        name,
        target=target,
        image_size=recipe.image_size,
        text=recipe.text,
        tokenizer=lambda: models.tokenizer(recipe.model, recipe.model_settings),
    )


def _trunk(recipe: Recipe, shape: tuple[int, ...]) -> nn.Module:
    """Return the trunk of `recipe` with the weights that it starts from; on features that stay its learned layers."""
    layers = models.layers_on_features(recipe.model, recipe.model_settings)
    if layers is None:
        return _with_weights(recipe, models.trunk(recipe.model, recipe.model_settings, shape, recipe.seed))
    made = models.trunk("mlp", {"hidden": layers}, shape, recipe.seed)
    return _with_weights(recipe, made) if layers else made


def _with_weights(recipe: Recipe, trunk: nn.Module) -> nn.Module:
    weights = read_weights(recipe)
    if weights is not None:
        load_trunk(trunk, weights, _described(str(recipe.weights)))
    return trunk


def _described(weights: str) -> str:
    """Return what errors call `weights`: with the network that they are of, where their folder says it."""
    network = network_of(weights)
    if not network:
        return weights
    values = spelled({name: each for name, each in network.items() if name != "name"})
    return f"{weights} of model {network['name']}" + (f" ({values})" if values else "")


def _prepared(trunk: nn.Module, chosen: models.Pretrained, seed: int) -> dict[nn.Parameter, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive(seed, "adapters"))
        return models.prepare(trunk, chosen)


def _only_head(recipe: Recipe) -> bool:
    return models.layers_on_features(recipe.model, recipe.model_settings) is not None


def _featured(recipe: Recipe, sets: list[Dataset]) -> list[Dataset]:
    """Return `sets` as the trunk sees them; the weights that `recipe` starts from are its, if no layers follow it."""
    made = models.trunk(recipe.model, recipe.model_settings, tuple(sets[0].train.inputs.shape[1:]), recipe.seed)
    if not models.layers_on_features(recipe.model, recipe.model_settings):
        made = _with_weights(recipe, made)
    return featured(sets, made, recipe.model, recipe.model_settings, device(recipe.device))


def featured(
    sets: Sequence[Dataset], trunk: nn.Module, model: str, model_settings: Mapping[str, Any], where: torch.device
) -> list[Dataset]:
    """Return `sets` as `trunk` sees them, which stays as it is: computed once on `where`, and kept on disk.

    Args:
        model, model_settings: what `trunk` was made of.

    Raises:
        InputError: samples that `trunk` does not take.
    """
    trunk = trunk.to(where).eval()
    scaled = Split(torch.empty(0), torch.empty(0)).scaled
    for each in sets:
        try:
            feature_width(trunk, scaled(each.train.inputs[:2].to(where)))
        except InputError as error:
            raise InputError(f"data {each.name}, model {model}: {error}") from error
    told = {name: each for name, each in model_settings.items() if name != "hidden"}  # the layers above change nothing
    digest = hashlib.blake2b(f"{trunk} {model} {told} {where.type}".encode(), digest_size=16)
    for name, tensor in sorted(trunk.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return [features(each, lambda inputs: trunk(scaled(inputs.to(where))), digest.hexdigest()) for each in sets]


def _scenario(recipe: Recipe) -> Scenario:
    unbounded = recipe.stream in streams.UNBOUNDED
    found = Scenario(recipe.scenario or ("class" if unbounded or recipe.stream == "split" else "domain"))
    if unbounded and found is not Scenario.CLASS:
        raise InputError(
            f"stream {recipe.stream} cannot do scenario {found.value}: a class is found in several tasks, so it can do "
            "class alone"
        )
    return found


def _unbounded(name: str, stream: str) -> InputError:
    """The error of a method that must know what a stream does not tell, with what to do about it."""
    freed = {each: spelled(kind.boundaries_unless) for each, kind in METHODS.items() if kind.boundaries_unless}
    able = [each for each, kind in METHODS.items() if not kind.boundaries]
    able += [f"{each} with {settings}" for each, settings in freed.items() if each != name]
    remedy = f"set its {freed[name]}, or take" if name in freed else "take"
    return InputError(
        f"method {name} needs to know where a task ends, and stream {stream} has no such places: "
        f"{remedy} {', '.join(able[:4])} or another that `lifelong list methods` says can do without"
    )


def _head(recipe: Recipe, stream: Stream) -> tuple[HeadKind, bool]:
    """Return the kind of head, and whether it is silent about classes that are not seen yet."""
    scenario = stream.scenario
    if not stream.boundaries:
        if recipe.head not in ("auto", "single"):
            raise InputError(f"head {recipe.head} grows task by task, and stream {stream.name} has none: use single")
        return "single", False
    masked = recipe.mask_unseen and scenario is Scenario.CLASS
    if recipe.head == "auto":
        if scenario is Scenario.CLASS and any(METHODS[name].all_outputs for name in recipe.method.split("+")):
            return "single", False
        return _HEAD_OF[scenario], masked
    if recipe.head == "single" and scenario is Scenario.TASK and len({task.scale is None for task in stream.tasks}) > 1:
        raise InputError("head single is one for all tasks, and some predict a number and others classes: use multi")
    if recipe.head != "single" and recipe.head != _HEAD_OF[scenario]:
        needs = "task" if recipe.head == "multi" else "class"
        raise InputError(f"head {recipe.head} needs scenario {needs}, and this stream is {scenario.value}-incremental")
    return recipe.head, masked
