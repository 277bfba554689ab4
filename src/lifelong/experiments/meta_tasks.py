"""From a recipe of meta-learning to its tasks: which data, which classes or domains are for what."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from lifelong import models, randomness
from lifelong.data import Dataset, hub, load
from lifelong.errors import InputError
from lifelong.experiments.build import device, featured
from lifelong.experiments.meta_recipe import SINUSOIDS, MetaRecipe
from lifelong.meta import FewShot, Sinusoids
from lifelong.meta.episodes import ClassPool, Source, class_pool, divide, domain_pool, only, turned
from lifelong.streams.transforms import mostly_light

# Of classes or domains: of those of training, validation and tests.
Names: TypeAlias = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Sources:
    """Tasks to train on, to choose by (or None) and to test on; they share no class, or no domain.

    `classes` are the names of those of each, of domains the domains', before any is turned. `inverted` says whether
    light and dark are exchanged in pictures.
    """

    train: Source
    validation: Source | None
    test: Source
    classes: Names = ((), (), ())
    inverted: bool = False


def sources(recipe: MetaRecipe) -> Sources:
    """Return the tasks of `recipe`, reading its data.

    Raises:
        InputError: data that cannot be had, fewer classes or samples than tasks need, or domains that differ in theirs.
    """
    where = device(recipe.device)
    shots, queries = recipe.train_shots or recipe.shots, recipe.train_queries or recipe.queries
    if recipe.data == SINUSOIDS:
        test = Sinusoids(recipe.shots, recipe.queries, where)
        return Sources(replace(test, shots=shots, queries=queries), test, test)
    pools, names, ways = _domain_pools(recipe) if recipe.domains else _class_pools(recipe)
    if recipe.invert is not None and pools[0].inputs.dim() != 4:
        shape = tuple(pools[0].inputs.shape[1:])
        raise InputError(f"invert is for pictures, and the data has samples of shape {shape}: leave it out")
    if recipe.standardize or (recipe.standardize is None and _are_numbers(recipe, pools[0].inputs)):
        pools = _standardized(pools)
    invert = mostly_light(pools[0].inputs) if recipe.invert is None else recipe.invert

    def few_shot(part: ClassPool, ways: int, shots: int, queries: int) -> FewShot:
        return FewShot(part.to(where), ways, shots, queries, invert, domains=recipe.domains)

    train, validation, test_pool = pools
    asked = (ways, recipe.shots, recipe.queries)
    looked_at = len(validation.counts) > 0 and _validates(recipe)
    return Sources(
        few_shot(train, recipe.train_ways or ways, shots, queries),
        few_shot(validation, *asked) if looked_at else None,
        few_shot(test_pool, *asked),
        names,
        invert,
    )


def _validates(recipe: MetaRecipe) -> bool:
    return recipe.validate_every > 0 or recipe.evaluate_on == "validation"


def seen(trained: MetaRecipe, recipe: MetaRecipe) -> list[str]:
    """Return the classes, or domains, that `trained` trains on and `recipe` is judged by.

    They are compared by name, where both have domains or both divide the classes of one data set.
    """
    dividing = ("data", "validation_data", "test_data", "target", "train_classes", "validation_classes", "test_classes")
    same = all(getattr(trained, name) == getattr(recipe, name) for name in (*dividing, "rotations", "split_seed"))
    if same or trained.domains != recipe.domains or recipe.data == SINUSOIDS:
        return []
    place = 1 if recipe.evaluate_on == "validation" else 2
    if recipe.domains:
        known = {_place(name) for name in _domains(trained)[0]}
        return [name for name in _domains(recipe)[place] if _place(name) in known]
    # `DATA:5-9` are some classes of it.
    one, other = (_place(re.sub(r":\d+-\d+$", "", each.data)) for each in (trained, recipe))
    if one != other:
        return []
    before, judged = _class_pools(trained)[0][0].names, _class_pools(recipe)[0][place].names
    return [name for name in judged if name in before]


def _place(name: str) -> str:
    """Return where the data `name` lies on this machine, which has one name alone, or else `name`."""
    path = Path(name) if Path(name).exists() else hub.local_copy(name)
    return name if path is None else str(path.resolve())


def _class_pools(recipe: MetaRecipe) -> tuple[list[ClassPool], Names, int]:
    """Return the training, validation and test classes of one data set, and how many of them a test task has.

    The names are those before any is turned.
    """
    pool = class_pool(_loaded(recipe, [recipe.data])[0])
    parts = divide(pool, _sizes(recipe, len(pool.counts)), recipe.split_seed)
    turn = {"none": 0, "train": 1, "all": 3}[recipe.rotations or "none"]
    pools = [turned(part) if place < turn else part for place, part in enumerate(parts)]
    assert recipe.ways is not None
    asked = (recipe.train_ways or recipe.ways, recipe.ways, recipe.ways)
    for name, part, ways in zip(("train", "validation", "test"), pools, asked, strict=True):
        if 0 < len(part.counts) < ways and (name != "validation" or _validates(recipe)):
            raise InputError(
                f"ways = {ways} is more than the {len(part.counts)} classes of {name} tasks: ask for fewer ways, or "
                f"set {name}_classes ({recipe.data} has {len(pool.counts)})"
            )
    return pools, tuple(part.names for part in parts), recipe.ways


def _domain_pools(recipe: MetaRecipe) -> tuple[list[ClassPool], Names, int]:
    """Return the classes of the training, validation and test domains, these domains, and how many classes each has."""
    parts = _domains(recipe)
    sets = _loaded(recipe, [name for part in parts for name in part])
    pool, ways = domain_pool(sets), len(sets[0].classes)
    if recipe.ways not in (None, ways):
        raise InputError(f"ways = {recipe.ways} does not fit domains of {ways} classes, all in each task: leave it out")
    classes = torch.arange(len(pool.counts)).split([ways * len(part) for part in parts])
    return [only(pool, each) for each in classes], tuple(map(tuple, parts)), ways


def _domains(recipe: MetaRecipe) -> tuple[list[str], list[str], list[str]]:
    """Return the names of the training, validation and test domains."""
    names = _names("data", recipe.data)
    given = [
        None if each is None else _names(name, each)
        for name, each in (("validation_data", recipe.validation_data), ("test_data", recipe.test_data))
    ]
    every = [*names, *(name for part in given for name in part or ())]
    places = [_place(name) for name in every]
    for name, place in zip(every, places, strict=True):
        if places.count(place) > 1:
            raise InputError(
                f"domain {name} is named more than once among data, validation_data and test_data: each is for one of "
                "training, validation and test"
            )
    drawn = torch.randperm(len(names), generator=randomness.generator(recipe.split_seed, "domain split")).tolist()
    order = [names[place] for place in drawn]
    fifth = len(names) // 5
    validation = order[:fifth] if given[0] is None else given[0]
    test = order[fifth : fifth + max(1, fifth)] if given[1] is None else given[1]
    train = [name for name in names if name not in validation + test]
    if not train:
        raise InputError(f"data = {recipe.data} leaves no domain to train on beside one to test on: name more of them")
    return train, validation, test


def _names(setting: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise InputError(f"{setting} = {text!r} has no name before or after one of its commas: leave that out")
    return names


def _loaded(recipe: MetaRecipe, names: list[str]) -> list[Dataset]:
    """Return the data sets called `names`, with features in place of inputs where the head learns alone."""
    model, values = recipe.model or "mlp", recipe.model_settings
    sets = [
        load(
            name,
            target=recipe.target,
            image_size=recipe.image_size,
            text=recipe.text,
            tokenizer=lambda: models.tokenizer(model, values),
        )
        for name in names
    ]
    if models.layers_on_features(model, values) is None:
        return sets
    shape = tuple(sets[0].train.inputs.shape[1:])
    return featured(sets, models.trunk(model, values, shape, recipe.seed), model, values, device(recipe.device))


def _are_numbers(recipe: MetaRecipe, inputs: Tensor) -> bool:
    """Return whether samples are rows of a table, whose columns have units of their own; not features of a network."""
    features = models.layers_on_features(recipe.model or "mlp", recipe.model_settings) is not None
    return inputs.dim() == 2 and inputs.is_floating_point() and not features


def _standardized(pools: list[ClassPool]) -> list[ClassPool]:
    train = pools[0].inputs
    if train.dim() != 2 or not train.is_floating_point():
        raise InputError(
            f"standardize is for rows of numbers, and the data has samples of shape {tuple(train.shape[1:])}"
        )
    deviation, mean = torch.std_mean(train, 0)
    return [replace(each, inputs=(each.inputs - mean) / deviation.clamp_min(1e-6)) for each in pools]


def _sizes(recipe: MetaRecipe, classes: int) -> tuple[int, int, int]:
    """Return how many classes training, validation and test tasks are made of."""
    validation = classes // 5 if recipe.validation_classes is None else recipe.validation_classes
    rest = max(0, classes - validation)
    if recipe.train_classes is None and recipe.test_classes is None:
        test = max(1, classes // 5)
        sizes = (rest - test, validation, test)
    elif recipe.test_classes is None:
        assert recipe.train_classes is not None
        sizes = (recipe.train_classes, validation, max(0, rest - recipe.train_classes))
    else:
        sizes = (recipe.train_classes or max(0, rest - recipe.test_classes), validation, recipe.test_classes)
    if min(sizes[0], sizes[2]) < 1 or sum(sizes) > classes:
        raise InputError(
            f"{recipe.data} has {classes} classes, which do not suffice for train_classes = {sizes[0]}, "
            f"validation_classes = {sizes[1]} and test_classes = {sizes[2]}"
        )
    return sizes
