"""Names of classes as points in the space that images and texts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lifelong.errors import InputError
from lifelong.models.pretrained.settings import Pretrained
from lifelong.models.pretrained.sources import read, transformers_library, weights
from lifelong.models.pretrained.tokenizer import tokenizer_of


def class_embeddings(name: str, chosen: Pretrained, classes: Sequence[str]) -> tuple[Tensor, float]:
    """Return the text embeddings `[classes, width]` of `chosen.prompt` with each name, and the scale of the logits.

    Raises:
        InputError: the model of `transformers` called `name` has no text tower, or the prompt no place for the name.
    """
    if "{}" not in chosen.prompt:
        raise InputError(f"model.prompt = {chosen.prompt!r} has no {{}} for the name of the class")
    transformers = transformers_library()
    if read(transformers.AutoConfig, name).model_type != "clip":
        raise InputError(
            f"model hf:{name} has no text tower for head_rows class-names: take class-means, or a CLIP model"
        )
    model, _ = weights(transformers.CLIPModel, name)
    tokens = tokenizer_of(name, chosen)([chosen.prompt.format(each.replace("_", " ")) for each in classes])
    mask = tokens >= 0
    with torch.no_grad():
        output: Any = model.eval().get_text_features(tokens.clamp_min(0), attention_mask=mask.long())
    embedded: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return embedded, float(model.logit_scale.detach().exp())
