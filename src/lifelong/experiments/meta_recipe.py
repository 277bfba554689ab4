"""A recipe of meta-learning: everything that makes one meta-training and its test."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lifelong import settings
from lifelong.errors import InputError
from lifelong.experiments.recipe import record
from lifelong.settings import setting

META_NESTED = {
    "algorithm": "algorithm_settings",
    "model": "model_settings",
    "optimizer": "optimizer_settings",
}

SINUSOIDS = "sinusoids"

# What the papers do with a data set, where the user does not say otherwise; of ten classes two are left for tests.
_USUAL: dict[str, dict[str, Any]] = {
    SINUSOIDS: {"shots": 10, "queries": 10},
    "omniglot": {"image_size": 28, "rotations": "all", "train_classes": 1100, "validation_classes": 100},
    **{name: {"ways": 2} for name in ("digits", "mnist", "fashion_mnist", "cifar10")},
}
_WAYS = 5
_CONVNET = {"channels": [64, 64, 64, 64], "halve": "stride"}


@dataclass(frozen=True)
class MetaRecipe:
    """One meta-training: tasks, a network, an algorithm. Each field is a setting of the command line."""

    algorithm: str = setting("maml", "meta-learning algorithm; `lifelong list meta` shows them")
    algorithm_settings: dict[str, Any] = setting(dict, "settings of the algorithm: --algorithm.NAME VALUE")
    data: str = setting(
        SINUSOIDS,
        "sinusoids; a data set whose classes make tasks: omniglot, mnist, a folder, a table; or several by commas, "
        "domains that share their classes: each task is of one",
    )
    validation_data: str | None = setting(
        None, "domains of validation tasks, by commas; by default a fifth of data, by the split seed"
    )
    test_data: str | None = setting(None, "domains of test tasks, by commas; by default a fifth of data, at least one")
    target: str | None = setting(None, "name of the label column, where it is not the usual one")
    text: str | None = setting(None, "name of the text column, where it is not the usual one")
    image_size: int | None = setting(None, "resize images to so many pixels a side; 28 for omniglot", ge=1)
    invert: bool | None = setting(None, "light and dark are exchanged; by default where pictures are mostly light")
    standardize: bool | None = setting(
        None, "numbers less their mean over training samples, divided by their deviation; by default those of tables"
    )
    rotations: Literal["none", "train", "all"] | None = setting(
        None, "turned by 90, 180 and 270 degrees a class is another one: never, in training, or in tests too"
    )
    train_classes: int | None = setting(None, "classes of training tasks; all that are left by default", ge=1)
    validation_classes: int | None = setting(None, "classes of validation tasks; a fifth by default", ge=0)
    test_classes: int | None = setting(None, "classes of test tasks; all that are left by default", ge=1)
    split_seed: int = setting(
        0, "draws which classes or domains are which; runs of other seeds share it", ge=0, lt=2**63
    )
    ways: int | None = setting(
        None, "classes of a task; 5 by default, 2 of built-in data of ten classes, and all those of domains", ge=2
    )
    shots: int = setting(1, "support samples a class, or points of a sinusoid, 10 by default", ge=1)
    queries: int = setting(1, "query samples a class, or points of a sinusoid, 10 by default", ge=1)
    train_ways: int | None = setting(None, "ways in training; as in tests by default", ge=2)
    train_shots: int | None = setting(None, "shots in training; as in tests by default", ge=1)
    train_queries: int | None = setting(None, "queries in training; as in tests by default", ge=1)
    statistics: Literal["transductive", "support", "per-step"] = setting(
        "transductive",
        "batch norm of queries: over all of a task, by its support samples, or in tests by training tasks at that step",
    )
    model: str | None = setting(
        None,
        "network, as in lifelong run; for pictures convnet with 4 strided blocks of 64, else mlp 40-40, by default; "
        "minilm and its like read texts, with --model.learn head on features that are computed once",
    )
    model_settings: dict[str, Any] = setting(dict, "settings of the network: --model.NAME VALUE")
    iterations: int = setting(2000, "meta-steps", ge=1)
    tasks: int = setting(32, "tasks of a meta-step", ge=1)
    optimizer: str = setting("adam", "outer optimiser, a class of torch.optim in any case")
    optimizer_settings: dict[str, Any] = setting(dict, "its further arguments: --optimizer.NAME VALUE")
    lr: float = setting(1e-3, "outer learning rate", gt=0)
    schedule: Literal["constant", "linear", "cosine"] = setting("constant", "course of the outer learning rate")
    warmup: float = setting(0.0, "share of iterations in which it rises, 0 to 1", ge=0, lt=1)
    clip: float | None = setting(None, "greatest norm of the meta-gradient", gt=0)
    validate_every: int = setting(500, "iterations between looks at validation tasks; the best weights are kept", ge=0)
    validation_tasks: int = setting(200, "validation tasks, the same each time", ge=2)
    patience: int | None = setting(None, "end after so many looks without a better score", ge=1)
    test_tasks: int = setting(600, "test tasks, or validation tasks where these are judged", ge=2)
    evaluate_on: Literal["test", "validation"] = setting("test", "the tasks that the final score is measured on")
    formulation: Literal["auto", "grouped", "columns", "vmap", "loop"] = setting(
        "auto", "how a batch of tasks is computed; measured once by default"
    )
    tasks_at_once: int | Literal["auto"] = setting(
        "auto", "tasks of a chunk, which bounds memory; measured by default", ge=1
    )
    threads: int | None = setting(None, "CPU threads, each with tasks of its own; all cores by default", ge=1, le=1024)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps ...")
    seed: int = setting(0, "of everything that is drawn", ge=0, lt=2**63)

    @property
    def domains(self) -> bool:
        """Whether each task is of one data set of several."""
        return "," in self.data or self.validation_data is not None or self.test_data is not None


def meta_recipe(values: Mapping[str, Any]) -> MetaRecipe:
    """Return the recipe that `values` describe, each checked, with what is usual for the data filled in.

    Args:
        values: settings by name; `algorithm`, `model` and `optimizer` may be a name, or a mapping of `name` and
            settings.

    Raises:
        InputError: an unknown setting, or a value of the wrong type or out of range.
    """
    flat = dict(values)
    flat.pop("description", None)
    for key, nested in META_NESTED.items():
        chosen = flat.get(key)
        if isinstance(chosen, Mapping):
            rest = dict(chosen)
            name = rest.pop("name", None)
            flat[nested] = {**rest, **flat.get(nested, {})}
            flat.pop(key)
            if name is not None:
                flat[key] = name
    made = settings.build(MetaRecipe, flat, "recipe")
    if made.data == SINUSOIDS:
        _check_sinusoids(made)
    if not made.domains:
        usual = {name: each for name, each in _USUAL.get(made.data, {}).items() if name not in flat}
        own = {**_usual_settings(made), **made.algorithm_settings}
        made = dataclasses.replace(made, **usual, algorithm_settings=own)
    if made.patience is not None and (made.validate_every == 0 or made.validation_classes == 0):
        raise InputError("patience watches validation tasks: set validate_every and validation_classes")
    if made.domains:
        _check_domains(made)
        return made
    return dataclasses.replace(made, ways=made.ways or _WAYS)


def _usual_settings(made: MetaRecipe) -> dict[str, Any]:
    """Return settings of the algorithm that are usual for the data: rates that suit pictures diverge on sinusoids."""
    from lifelong.meta import ALGORITHMS

    if made.data != SINUSOIDS or made.algorithm not in ALGORITHMS:
        return {}
    if made.algorithm == "meta-sgd":
        # Rates that are learned for one step diverge within ten (seen at every look of 2,000 iterations).
        return {} if "steps" in made.algorithm_settings else {"test_steps": 1}
    names = [field.name for field in settings.fields(ALGORITHMS[made.algorithm])]
    return {"rate": 0.01} if "rate" in names else {}


def _check_sinusoids(made: MetaRecipe) -> None:
    unset = MetaRecipe()
    of_samples = ("target", "text", "image_size", "invert", "standardize", "rotations")
    of_classes = ("train_classes", "validation_classes", "test_classes", "ways", "train_ways")
    for name in (*of_samples, *of_classes):
        given = getattr(made, name)
        # What is recorded of a training has the ways that are usual.
        if given != getattr(unset, name) and (name, given) != ("ways", _WAYS):
            raise InputError(
                f"{name} = {given} means nothing for sinusoids, points of one curve each: leave it out, or name other "
                "data"
            )


def _check_domains(made: MetaRecipe) -> None:
    of_classes = ("train_classes", "validation_classes", "test_classes", "train_ways")
    for name in of_classes:
        if getattr(made, name) is not None:
            raise InputError(
                f"{name} = {getattr(made, name)} divides classes, and domains have them all: leave it out "
                "(validation_data and test_data say which domains are which)"
            )
    if made.rotations not in (None, "none"):
        raise InputError(f"rotations = {made.rotations} makes further classes, and domains share theirs: leave it out")
    if SINUSOIDS in made.data.split(","):
        raise InputError("sinusoids have no classes that other domains could share: leave them out")


def filled(made: MetaRecipe, shape: tuple[int, ...]) -> MetaRecipe:
    """Return `made` with a network for samples of `shape`, where it names none."""
    if made.model is not None:
        return made
    if len(shape) == 3 and min(shape[1:]) >= 16:
        return dataclasses.replace(made, model="convnet", model_settings={**_CONVNET, **made.model_settings})
    return dataclasses.replace(made, model="mlp", model_settings={"hidden": [40, 40], **made.model_settings})


def meta_record(made: MetaRecipe) -> dict[str, Any]:
    """Return `made` as a mapping that `meta_recipe` takes back."""
    return record(made, META_NESTED)


def meta_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the names of settings in which two recorded recipes differ; where and how fast a run goes is not one."""
    aside = {"device", "threads", "formulation", "tasks_at_once"}
    unset = meta_record(MetaRecipe())
    ours, theirs = {**unset, **ours}, {**unset, **theirs}
    return sorted(key for key in ours.keys() | theirs.keys() if key not in aside and ours.get(key) != theirs.get(key))
