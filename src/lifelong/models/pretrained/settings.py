"""What may be said of a pretrained network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lifelong.settings import setting


@dataclass(frozen=True)
class Pretrained:
    """A network with weights that are there: of transformers, of timm, of a pip package, or of a function."""

    learn: Literal["all", "head", "lora", "dora", "ia3"] = setting(
        "all",
        "what is trained: all weights, the head alone on features that are computed once and kept on disk, or "
        "adapters: changes of low rank (lora), these and the length of each row (dora), factors on outputs (ia3)",
    )
    hidden: tuple[int, ...] = setting(
        (), "learn head: units of layers with ReLU that learn between these features and the head"
    )
    image_size: int | None = setting(
        None, "pixels a side that images are resized to, batch by batch; the network's own by default", ge=1
    )
    tokens: int | None = setting(
        None, "tokens of a text at most, the rest is cut off; 128 or as many as the network reads by default", ge=2
    )
    tokenizer: str | None = setting(None, "folder or name of the tokenizer, where it does not lie beside the weights")
    pooling: Literal["auto", "pooler", "first", "mean"] = setting(
        "auto", "features out of hidden states: the network's own pooling, the first token, or the mean over tokens"
    )
    head_name: str | None = setting(
        None, "module of a function's or timm's network that is taken off as its head; the last linear one by default"
    )
    layer_decay: float = setting(
        1.0, "each layer of the trunk learns at so much of the rate of the one above it, 0 to 1", gt=0, le=1
    )
    rates: dict[str, float] = setting(
        dict, "factor on the learning rate by the beginning of a weight's name, 0 to freeze: {embeddings: 0}"
    )
    fix_batch_norm: bool = setting(False, "batch normalisation keeps its weights and its statistics")
    rank: int = setting(8, "lora, dora: rank of each adapter", ge=1)
    alpha: float = setting(16.0, "lora, dora: an adapter's change is alpha/rank B A", gt=0)
    adapted: tuple[str, ...] | None = setting(
        None, "adapters: ends of the names of the layers that get an adapter; all linear ones by default"
    )
    prompt: str = setting("a photo of a {}.", "sentence that the text tower is given with a class's name for {}")
    gradient_checkpointing: bool = setting(
        False, "activations are computed again in the backward pass: less memory, a third more time"
    )
