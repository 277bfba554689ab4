"""How a stream's pictures are given to the network: light and dark exchanged, and within a border."""

from __future__ import annotations

import dataclasses
import hashlib

from lifelong.data import Dataset, Samples
from lifelong.errors import InputError
from lifelong.experiments.recipe import Recipe
from lifelong.experiments.start import said_of
from lifelong.streams.transforms import invert, mostly_light, pad


def arranged(dataset: Dataset, recipe: Recipe) -> Dataset:
    """Return `dataset` with its pictures as `recipe` has them.

    Raises:
        InputError: samples that are no pictures; or light ones for weights that were meta-trained on inverted ones,
            where `recipe` does not say what is wanted.
    """
    shape = tuple(dataset.train.inputs.shape[1:])
    for name in ("invert", "pad"):
        if getattr(recipe, name) and len(shape) != 3:
            raise InputError(f"{name} is for images, and {dataset.name} has {shape}")
    if recipe.invert is None and mostly_light(dataset.train.inputs) and said_of(recipe.weights).get("inverted") is True:
        raise InputError(
            f"weights {recipe.weights} were meta-trained on inverted pictures, ink 1 on 0, and those of {dataset.name} "
            "are mostly light: set invert to true, which inverts them too, or to false"
        )
    if not (recipe.invert or recipe.pad):
        return dataset

    def changed(part: Samples) -> Samples:
        return Samples(pad(invert(part.inputs) if recipe.invert else part.inputs, recipe.pad), part.targets)

    # What is computed from them once and kept is not what was computed from them as they were.
    told = f"invert {bool(recipe.invert)} pad {recipe.pad} {dataset.fingerprint}"
    key = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    return dataclasses.replace(dataset, train=changed(dataset.train), test=changed(dataset.test), fingerprint=key)
