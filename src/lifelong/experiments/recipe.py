"""A recipe is everything that makes one run; the same recipe on the same machine gives the same result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lifelong import settings
from lifelong.errors import InputError
from lifelong.experiments.start import with_network
from lifelong.settings import setting

# Settings whose value names something that has settings of its own, kept beside it.
NESTED = {
    "method": "method_settings",
    "model": "model_settings",
    "weights": "weights_settings",
    "optimizer": "optimizer_settings",
}

# Settings that only some kinds of stream have.
_OF_STREAMS = {
    "unseen": ("domains",),
    "first_unpermuted": ("permuted",),
    "angles": ("rotated",),
    "classes_per_task": ("split", "blurry"),
    "shuffle_classes": ("split", "blurry"),
    "blur": ("blurry",),
}

# Settings that say which tasks are learned and measured.
_STREAM = (
    *("stream", "data", "unseen", "target", "text", "image_size", "scenario", "tasks", *_OF_STREAMS, "invert", "pad"),
    *("standardize", "validation", "train_samples", "test_samples", "evaluate_on"),
)

ScenarioName = Literal["task", "domain", "class"]


@dataclass(frozen=True)
class Recipe:
    """One run: a stream, a network, a method, and how they meet. Each field is a setting of the command line."""

    stream: Literal["permuted", "rotated", "split", "domains", "blurry"] = setting("permuted", "kind of stream")
    data: str = setting(
        "digits",
        "data set: a built-in or hub name, a folder, a table; DATA:5-9 for some classes; for domains several by commas",
    )
    unseen: str | None = setting(
        None, "domains: data sets by commas that are never learned; accuracy on them is measured first and last"
    )
    target: str | None = setting(
        None,
        "name of the label column, where it is not the usual one, NAME:number where its values are to be predicted as "
        "numbers; in stream domains one for all data sets, or one for each, separated by commas",
    )
    text: str | None = setting(None, "name of the text column, where it is not the usual one")
    image_size: int | None = setting(None, "resize images to so many pixels a side", ge=1)
    scenario: ScenarioName | None = setting(
        None, "what is known at prediction; class for split and blurry, else domain, by default"
    )
    tasks: int = setting(5, "number of tasks", ge=1)
    first_unpermuted: bool = setting(True, "permuted: the first task sees the inputs as they are")
    angles: tuple[float, ...] | None = setting(None, "rotated: degrees, one a task; evenly over 0 to 180 by default")
    classes_per_task: tuple[int, ...] | None = setting(
        None, "split, blurry: classes of each task; as even as possible by default"
    )
    shuffle_classes: bool = setting(False, "split, blurry: draw the order of the classes by the seed")
    blur: float = setting(
        0.1, "blurry: share of each class's training samples that is found outside its task, 0 to 1", ge=0, le=1
    )
    invert: bool | None = setting(
        None, "light and dark of images are exchanged, as meta-training does where they are mostly light"
    )
    pad: int = setting(0, "border of zeros around images, in pixels", ge=0)
    standardize: bool = setting(
        False, "subtract the mean and divide by the deviation of the first task's training inputs"
    )
    validation: float = setting(0.0, "share of training samples held out for validation, 0 to 1", ge=0, lt=1)
    train_samples: int | None = setting(None, "training samples a task at most", ge=1)
    test_samples: int | None = setting(None, "test samples a task at most", ge=1)
    evaluate_on: Literal["test", "validation"] = setting("test", "the samples that accuracies are measured on")
    method: str = setting("naive", "continual-learning method, or several in a chain: ewc+lwf")
    method_settings: dict[str, Any] = setting(dict, "settings of the method: --method.NAME VALUE")
    model: str = setting(
        "mlp",
        "network: mlp, convnet, efficientnet-lite0, minilm, hf:FOLDER_OR_NAME, timm:NAME, or package.module:function; "
        "that of the weights that a run starts from, if their folder says it",
    )
    model_settings: dict[str, Any] = setting(dict, "settings of the network: --model.NAME VALUE")
    weights: str | None = setting(
        None,
        "start from these: an earlier run's folder, or a safetensors file with the network's names; the head is new",
    )
    weights_settings: dict[str, Any] = setting(dict, "sha256: digest that the file must have; filled in if not given")
    head: Literal["auto", "single", "multi", "growing"] = setting("auto", "last layer; by scenario by default")
    head_rows: Literal["learned", "class-means", "class-names"] = setting(
        "learned",
        "outputs: learned, or fixed from the beginning: mean features of each class's training samples, or "
        "embeddings of the classes' names by the model's text tower",
    )
    mask_unseen: bool = setting(
        True, "a single head of a class-incremental stream answers for seen classes only; blurry masks none"
    )
    epochs: int = setting(1, "passes over the training data of each task", ge=1)
    steps: int | None = setting(None, "steps a task, instead of epochs", ge=1)
    batch_size: int = setting(128, "samples a step", ge=1)
    optimizer: str = setting("adam", "class of torch.optim, in any case")
    optimizer_settings: dict[str, Any] = setting(dict, "its further arguments: --optimizer.NAME VALUE")
    lr: float = setting(1e-3, "learning rate", gt=0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "course of the learning rate over each task"
    )
    warmup: float = setting(0.0, "share of a task's steps in which the learning rate rises, 0 to 1", ge=0, lt=1)
    clip: float | None = setting(None, "greatest norm of the gradient", gt=0)
    flip: bool = setting(False, "training images, new and replayed, are mirrored with probability 1/2")
    crop: int = setting(0, "training images are shifted by up to so many pixels each way", ge=0)
    keep_optimizer: bool = setting(False, "the optimiser's state goes on from task to task instead of starting afresh")
    early_stopping: int | None = setting(
        None, "end a task after so many epochs without better validation accuracy", ge=1
    )
    precision: Literal["float32", "bf16"] = setting("float32", "arithmetic of the forward pass")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps ...")
    threads: int | None = setting(
        None, "CPU threads of a run; all cores divided among the workers by default", ge=1, le=1024
    )
    seed: int = setting(0, "of everything that is drawn", ge=0, lt=2**63)


def recipe(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `values` describe, each checked.

    Args:
        values: settings by name, from YAML or the command line. `method`, `model`, `weights` and `optimizer` may be a
            name, or a mapping of `name` and settings, which `method_settings` and its like override; `stream` may be
            `KIND-DATA`, as in `permuted-mnist`. Without `model` the network is that of the folder of weights.

    Raises:
        InputError: an unknown setting, a value of the wrong type or out of range, or weights that cannot be read.
    """
    flat = with_network(values)
    for key, nested in NESTED.items():
        chosen = flat.get(key)
        if isinstance(chosen, Mapping):
            rest = dict(chosen)
            flat[key] = rest.pop("name", settings.default_of(_field(key)))
            flat[nested] = {**rest, **flat.get(nested, {})}
    if isinstance(flat.get("method"), str):
        flat["method"] = spaceless(flat["method"])
    kind, _, data = str(flat.get("stream", "")).partition("-")
    if data:
        flat["stream"], flat["data"] = kind, data
    built = settings.build(Recipe, flat, "recipe")
    _check(built)
    return _with_digest(built)


def spaceless(method: str) -> str:
    """Return the name of a chain as it is registered: `er + ewc` is `er+ewc`."""
    return "+".join(part.strip() for part in method.split("+"))


def read_weights(made: Recipe) -> bytes | None:
    """Return the content of the file of weights that `made` starts from, or None where it starts from fresh ones.

    Raises:
        InputError: it cannot be read, or it is not what it was.
    """
    if made.weights is None:
        return None
    path = Path(made.weights)
    if path.is_dir():
        path /= "model.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"weights {path} cannot be read ({error.strerror})") from None
    wanted, found = made.weights_settings.get("sha256"), hashlib.sha256(content).hexdigest()
    if wanted not in (None, found):
        raise InputError(f"weights {path} have the sha256 {found}, and {wanted} is asked for")
    return content


def record(made: Any, nested: Mapping[str, str] = NESTED) -> dict[str, Any]:
    """Return a recipe as a mapping that `recipe` takes back, with settings under the names that they belong to.

    Args:
        made: a `Recipe`, or a dataclass of another kind of recipe.
        nested: which of its fields hold the settings of which.
    """
    values = dataclasses.asdict(made)
    for key, inner in nested.items():
        values[key] = {"name": values[key], **values.pop(inner)}
    # As a file would give it back: tuples, wherever they stand, are lists.
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the names of settings in which two recorded recipes differ; where and how fast a run goes is not one.

    A setting that one of them does not know, as it is older, has its default there. Weights are known by their digest,
    wherever they lie.
    """
    aside, unset = {"device", "threads"}, record(Recipe())
    ours, theirs = ({**unset, **each} for each in (ours, theirs))
    ours, theirs = ({**each, "weights": each["weights"].get("sha256")} for each in (ours, theirs))
    return sorted(key for key in ours.keys() | theirs.keys() if key not in aside and ours.get(key) != theirs.get(key))


def stream_of(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recorded recipe says of its stream: results of the same one stand in one table."""
    return {name: recorded.get(name, settings.default_of(_field(name))) for name in _STREAM}


def _check(made: Recipe) -> None:
    for name, kinds in _OF_STREAMS.items():
        if made.stream not in kinds and getattr(made, name) != settings.default_of(_field(name)):
            raise InputError(f"{name} is a setting of stream {' and '.join(kinds)}, and stream is {made.stream}")
    if made.early_stopping is not None and made.validation == 0:
        raise InputError("early_stopping watches validation accuracy: set validation, for instance to 0.1")
    if made.evaluate_on == "validation" and made.validation == 0:
        raise InputError("evaluate_on validation needs some: set validation, for instance to 0.1")


def _with_digest(made: Recipe) -> Recipe:
    odd = made.weights_settings.keys() - {"sha256"}
    if odd:
        raise InputError(f"weights have no setting {min(odd)!r}: there is sha256")
    content = read_weights(made)
    if content is None:
        return made
    return dataclasses.replace(made, weights_settings={"sha256": hashlib.sha256(content).hexdigest()})


def _field(name: str) -> dataclasses.Field[Any]:
    return next(field for field in settings.fields(Recipe) if field.name == name)
