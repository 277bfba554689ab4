"""Folders of random networks as `transformers` writes them: what a pretrained model looks like, in kilobytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

WORDS = ("good", "bad", "book", "film", "plot", "lens", "a", "the", "was", "very")


def tokenizer(folder: Path, words: Sequence[str] = WORDS) -> Path:
    """Write a tokenizer of whole words; its tokens are 0 to 3 for padding, unknown words, start and end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return folder


def bert(folder: Path, *, words: Sequence[str] = WORDS, pooler: bool = True, **settings: Any) -> Path:
    """Write a text encoder of three layers with its tokenizer."""
    from transformers import BertConfig, BertModel

    tokenizer(folder, words)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4 + len(words),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        **settings,
    )
    BertModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    return folder


def vit(folder: Path, *, pooler: bool = True) -> Path:
    """Write an image encoder for 16x16 pixels."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    ViTModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    return folder


def clip(folder: Path, *, words: Sequence[str] = WORDS) -> Path:
    """Write a pair of towers, for 16x16 pixels and for texts of up to 12 tokens, with its tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer(folder, words)
    torch.manual_seed(0)
    tower = {
        "projection_dim": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    config = CLIPConfig(
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        text_config={
            **tower,
            "vocab_size": 4 + len(words),
            "max_position_embeddings": 12,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "pad_token_id": 0,
        },
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


def convnext(folder: Path) -> Path:
    """Write an image encoder of convolutions, whose last states are maps."""
    from transformers import ConvNextConfig, ConvNextModel

    torch.manual_seed(0)
    config = ConvNextConfig(patch_size=2, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, image_size=16)
    ConvNextModel(config).save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    """Write a pair of towers of which that for images pools by attention."""
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    vision, text = {**tower, "image_size": 16, "patch_size": 8}, {**tower, "vocab_size": 14}
    SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
    return folder


def t5(folder: Path, *, words: Sequence[str] = WORDS) -> Path:
    """Write an encoder and decoder of texts with its tokenizer."""
    from transformers import T5Config, T5Model

    tokenizer(folder, words)
    torch.manual_seed(0)
    config = T5Config(vocab_size=4 + len(words), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    T5Model(config).save_pretrained(folder)
    return folder
