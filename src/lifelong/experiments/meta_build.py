"""From a recipe of meta-learning to what it names: tasks, network, algorithm, schedule."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lifelong import models, randomness, settings
from lifelong.data import load
from lifelong.errors import InputError, unknown
from lifelong.experiments.build import device
from lifelong.experiments.meta_recipe import SINUSOIDS, MetaRecipe, filled
from lifelong.meta import ALGORITHMS, FewShot, MetaLearner, Problem, Sinusoids, engine, task_network
from lifelong.meta.engine import Engine
from lifelong.meta.episodes import ClassPool, Source, class_pool, divide, turned
from lifelong.meta.network import Formulation
from lifelong.models.network import feature_width
from lifelong.training.meta_loop import MetaSchedule, MetaTraining
from lifelong.training.optimizers import make_optimizer, rate_schedule


@dataclass(frozen=True)
class Sources:
    """Tasks to train on, to choose by (or None) and to test on; they share no class."""

    train: Source
    validation: Source | None
    test: Source


def algorithm(recipe: MetaRecipe) -> MetaLearner:
    """Return the algorithm of `recipe`.

    Raises:
        InputError: an unknown algorithm or setting, or one that cannot do regression, or keep statistics for each step,
            where that is asked for.
    """
    if recipe.algorithm not in ALGORITHMS:
        raise unknown("algorithm", recipe.algorithm, ALGORITHMS)
    made = settings.build(ALGORITHMS[recipe.algorithm], recipe.algorithm_settings, f"algorithm {recipe.algorithm}")
    if recipe.data == SINUSOIDS and not made.regression:
        able = ", ".join(name for name, kind in ALGORITHMS.items() if kind.regression)
        raise InputError(f"algorithm {recipe.algorithm} needs classes, and sinusoids have none: take one of {able}")
    if recipe.statistics == "per-step" and not made.per_step:
        able = ", ".join(name for name, kind in ALGORITHMS.items() if kind.per_step)
        raise InputError(
            f"algorithm {recipe.algorithm} keeps no statistics per-step: take transductive, or one of {able}"
        )
    return made


def sources(recipe: MetaRecipe) -> Sources:
    """Return the tasks of `recipe`, reading its data.

    Raises:
        InputError: data that cannot be had, or fewer classes or samples than tasks need.
    """
    where = device(recipe.device)
    shots, queries = recipe.train_shots or recipe.shots, recipe.train_queries or recipe.queries
    if recipe.data == SINUSOIDS:
        test = Sinusoids(recipe.shots, recipe.queries, where)
        return Sources(replace(test, shots=shots, queries=queries), test, test)
    pool = class_pool(load(recipe.data, target=recipe.target, image_size=recipe.image_size))
    invert = _mostly_light(pool.inputs) if recipe.invert is None else recipe.invert
    parts = divide(pool, _sizes(recipe, len(pool.counts)), recipe.split_seed)
    train, validation, test_pool = (
        (turned(part) if recipe.rotations == "all" or (recipe.rotations == "train" and place == 0) else part).to(where)
        for place, part in enumerate(parts)
    )

    def few_shot(part: ClassPool, name: str, ways: int, shots: int, queries: int) -> FewShot:
        if ways > len(part.counts):
            raise InputError(
                f"ways = {ways} is more than the {len(part.counts)} classes of {name} tasks: ask for fewer ways, or "
                f"set {name}_classes ({recipe.data} has {len(pool.counts)})"
            )
        return FewShot(part, ways, shots, queries, invert)

    asked = (recipe.ways, recipe.shots, recipe.queries)
    return Sources(
        few_shot(train, "train", recipe.train_ways or recipe.ways, shots, queries),
        few_shot(validation, "validation", *asked) if len(validation.counts) else None,
        few_shot(test_pool, "test", *asked),
    )


def trunk(recipe: MetaRecipe, sample: Tensor) -> tuple[nn.Module, nn.Linear]:
    """Return the freshly initialised trunk and head of `recipe`, on its device."""
    shape = tuple(sample.shape[1:])
    whole = filled(recipe, shape)
    assert whole.model is not None
    body = models.trunk(whole.model, whole.model_settings, shape, recipe.seed)
    width = feature_width(body, sample.cpu())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive(recipe.seed, "head"))
        head = nn.Linear(width, 1 if recipe.data == SINUSOIDS else recipe.ways)
    where = device(recipe.device)
    return body.to(where), head.to(where)


def problem(recipe: MetaRecipe, tasks: Sources, formulation: Formulation) -> Problem:
    """Return what is to be learned, in `formulation`."""
    sample = tasks.train.sample()
    body, head = trunk(recipe, sample)
    network = task_network(body, head, sample, formulation=formulation, statistics=recipe.statistics)
    classes = len(tasks.train.pool.counts) if isinstance(tasks.train, FewShot) else 0
    return Problem(network, tasks.train.loss, tasks.train.score, classes)


def choose_engine(recipe: MetaRecipe, tasks: Sources, made: MetaLearner) -> Engine:
    """Return how batches of `recipe` are computed: as it says, or as is measured to be fastest here."""
    drawn = tasks.train.draw(recipe.tasks, randomness.generator(0, "measured"))
    return engine.choose(
        made,
        functools.partial(problem, recipe, tasks),
        drawn,
        formulation=recipe.formulation,
        tasks_at_once=recipe.tasks_at_once,
        threads=recipe.threads or len(os.sched_getaffinity(0)),
    )


def training(recipe: MetaRecipe, tasks: Sources, made: MetaLearner, how: Engine) -> MetaTraining:
    """Return meta-training before its first iteration."""
    asked = problem(recipe, tasks, how.formulation)
    meta = {name: each.requires_grad_() for name, each in made.parameters(asked).items()}
    make = make_optimizer(recipe.optimizer, recipe.lr, recipe.optimizer_settings)
    return MetaTraining(made, asked, how, meta, made.buffers(asked), make(meta.values()), recipe.seed)  # type: ignore[arg-type]


def schedule(recipe: MetaRecipe) -> MetaSchedule:
    """Return how long and how fast `recipe` trains."""
    return MetaSchedule(
        recipe.iterations,
        recipe.tasks,
        rate_schedule(recipe.schedule, recipe.warmup),
        recipe.clip,
        recipe.validate_every,
        recipe.validation_tasks,
        recipe.patience,
        lower_is_better=recipe.data == SINUSOIDS,
    )


def _sizes(recipe: MetaRecipe, classes: int) -> tuple[int, int, int]:
    """Return how many classes training, validation and test tasks are made of."""
    validation = classes // 5 if recipe.validation_classes is None else recipe.validation_classes
    rest = classes - validation
    if recipe.train_classes is None and recipe.test_classes is None:
        test = max(1, classes // 5)
        sizes = (rest - test, validation, test)
    elif recipe.test_classes is None:
        assert recipe.train_classes is not None
        sizes = (recipe.train_classes, validation, rest - recipe.train_classes)
    else:
        sizes = (recipe.train_classes or rest - recipe.test_classes, validation, recipe.test_classes)
    if min(sizes[0], sizes[2]) < 1 or sum(sizes) > classes:
        raise InputError(
            f"{recipe.data} has {classes} classes, which do not suffice for train_classes = {sizes[0]}, "
            f"validation_classes = {sizes[1]} and test_classes = {sizes[2]}"
        )
    return sizes


def _mostly_light(inputs: Tensor) -> bool:
    return inputs.dtype == torch.uint8 and inputs.dim() == 4 and float(inputs[:1000].float().mean()) > 127.5
