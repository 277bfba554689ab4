"""From a recipe of meta-learning to what it names: network, algorithm, schedule."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from lifelong import models, randomness, settings
from lifelong.errors import InputError, unknown
from lifelong.experiments.build import device
from lifelong.experiments.meta_recipe import SINUSOIDS, MetaRecipe, filled
from lifelong.experiments.meta_tasks import Sources
from lifelong.merging.workers import processors
from lifelong.meta import ALGORITHMS, FewShot, MetaLearner, Problem, engine, task_network
from lifelong.meta.engine import Engine
from lifelong.meta.inner_loop import InnerLoop
from lifelong.meta.network import Formulation
from lifelong.models.network import feature_width
from lifelong.training.meta_loop import MetaSchedule, MetaTraining
from lifelong.training.optimizers import make_optimizer, rate_schedule


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
    if not made.any_ways and recipe.train_ways not in (None, recipe.ways):
        able = ", ".join(name for name, each in ALGORITHMS.items() if each.any_ways)
        raise InputError(
            f"train_ways = {recipe.train_ways}: the head that {recipe.algorithm} learns has as many outputs in "
            f"training as in tests, ways = {recipe.ways}; training has other numbers of classes with {able}"
        )
    layers = models.layers_on_features(recipe.model or "mlp", recipe.model_settings)
    if made.needs_trunk and layers is not None and not layers:
        raise InputError(f"algorithm {recipe.algorithm} learns what is below the head: give it layers by model.hidden")
    return made


def trunk(recipe: MetaRecipe, sample: Tensor, outputs: int) -> tuple[nn.Module, nn.Linear]:
    """Return the freshly initialised trunk, and head of so many outputs, of `recipe`, on its device."""
    shape = tuple(sample.shape[1:])
    whole = filled(recipe, shape)
    assert whole.model is not None
    layers = models.layers_on_features(whole.model, whole.model_settings)
    if layers is None:
        _check_whole(whole.model, whole.model_settings)
        body = models.trunk(whole.model, whole.model_settings, shape, recipe.seed)
        if isinstance(body, models.TextTrunk):
            encoder: Any = body.encoder
            encoder.set_attn_implementation("eager")  # the fused one has no second derivative
    else:
        body = models.trunk("mlp", {"hidden": layers}, shape, recipe.seed)
    width = feature_width(body, sample.cpu())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive(recipe.seed, "head"))
        head = nn.Linear(width, outputs)
    where = device(recipe.device)
    return body.to(where), head.to(where)


def problem(recipe: MetaRecipe, tasks: Sources, formulation: Formulation) -> Problem:
    """Return what is to be learned, in `formulation`."""
    sample = tasks.train.sample()
    body, head = trunk(recipe, sample, tasks.test.outputs)
    network = task_network(body, head, sample, formulation=formulation, statistics=recipe.statistics)
    made = algorithm(recipe)
    needs_trunk = made.needs_trunk and not any(each.requires_grad for each in body.parameters())
    if needs_trunk or (isinstance(made, InnerLoop) and not made.adapted(network.initial())):
        raise InputError(
            f"algorithm {recipe.algorithm} learns what is below the head: give it weights that are trained"
        )
    classes = tasks.train.labels if isinstance(tasks.train, FewShot) else 0
    return Problem(network, tasks.train.loss, tasks.train.score, classes, shared_labels=recipe.domains)


def whole_engine(recipe: MetaRecipe) -> Engine | None:
    """Return how all weights of a pretrained network are meta-learned, or None where others are.

    One task after another, as one alone fills the machine; and texts of many lengths go through the network in pieces,
    which `vmap` cannot follow.

    Raises:
        InputError: another formulation is asked for.
    """
    model = recipe.model or "mlp"
    if not models.is_pretrained(model) or models.layers_on_features(model, recipe.model_settings) is not None:
        return None
    if recipe.formulation not in ("auto", "loop"):
        raise InputError(f"formulation {recipe.formulation} is not for all of {model}: take loop, or auto")
    return Engine("loop", 1 if recipe.tasks_at_once == "auto" else recipe.tasks_at_once)


def choose_engine(recipe: MetaRecipe, tasks: Sources, made: MetaLearner) -> Engine:
    """Return how batches of `recipe` are computed: as it says, or as is measured to be fastest here."""
    whole = whole_engine(recipe)
    if whole is not None:
        return whole
    drawn = tasks.train.draw(recipe.tasks, randomness.generator(0, "measured"))
    return engine.choose(
        made,
        functools.partial(problem, recipe, tasks),
        drawn,
        formulation=recipe.formulation,
        tasks_at_once=recipe.tasks_at_once,
        threads=recipe.threads or processors(),
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


def _check_whole(model: str, values: dict[str, Any]) -> None:
    """Refuse what `lifelong run` knows of a pretrained network and meta-learning does not."""
    chosen = models.pretrained_settings(model, values)
    for name in ("learn", "layer_decay", "rates", "fix_batch_norm"):
        if chosen is not None and getattr(chosen, name) != getattr(models.Pretrained(), name):
            raise InputError(
                f"model.{name} = {getattr(chosen, name)} is for lifelong run: meta-learning moves all weights of "
                f"{model}, or those on its features (model.learn head)"
            )
