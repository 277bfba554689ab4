"""Recipes of mergekit's kinds, run unchanged by mergekit and by us on small checkpoints, compared number by number.

    python benchmarks/mergekit_parity.py --python /path/to/mergekits/environment/bin/python --work /tmp/parity

Checkpoints are made by `transformers` in mergekit's environment: Llama, Qwen2 and ViT configurations, random weights.
For each recipe, in float32 and in bfloat16, prints the largest difference relative to the largest number of a tensor,
and the share of numbers that differ at all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lifelong.merging.checkpoint import open_model

_MAKE = """
import sys, torch, transformers
from transformers import LlamaConfig, Qwen2Config, ViTConfig
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, ViTForImageClassification
work, dtype = sys.argv[1], getattr(torch, sys.argv[2])
text = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=257, max_position_embeddings=64, tie_word_embeddings=False)
kinds = {
    "llama": (LlamaForCausalLM, LlamaConfig(**text)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**text)),
    "vit": (ViTForImageClassification, ViTConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4,
            num_attention_heads=4, image_size=32, patch_size=8, num_labels=10)),
}
for kind, (model, config) in kinds.items():
    torch.manual_seed(0)
    base = model(config)
    start = {name: each.clone() for name, each in base.state_dict().items()}
    for index, name in enumerate(("base", "a", "b", "c")):
        torch.manual_seed(index)
        near = {key: each + (0.01 * torch.randn_like(each) if index and each.is_floating_point() else 0)
                for key, each in start.items()}
        base.load_state_dict(near)
        base.to(dtype).save_pretrained(f"{work}/{kind}-{name}")
        base.to(torch.float32)
"""

LAYERS = 4


def recipes(kind: str, work: Path, dtype: str) -> dict[str, dict[str, Any]]:
    base, a, b, c = (str(work / f"{kind}-{name}") for name in ("base", "a", "b", "c"))
    sparse = [
        {"model": a, "parameters": {"weight": 0.5, "density": 0.3}},
        {"model": b, "parameters": {"weight": [0.2, 0.8], "density": 0.6}},
    ]
    gradients = [{"filter": "mlp", "value": [0, 0.5, 1]}, {"value": 0.4}]
    made: dict[str, dict[str, Any]] = {
        "linear": {
            "merge_method": "linear",
            "models": [{"model": m, "parameters": {"weight": w}} for m, w in ((a, 1), (b, 0.3), (c, 0.5))],
        },
        "slerp with gradients": {
            "merge_method": "slerp",
            "base_model": a,
            "slices": [{"sources": [{"model": m, "layer_range": [0, LAYERS]} for m in (a, b)]}],
            "parameters": {"t": gradients},
        },
        "task_arithmetic": {
            "merge_method": "task_arithmetic",
            "base_model": base,
            "models": [{"model": a, "parameters": {"weight": 0.4}}, {"model": b, "parameters": {"weight": [0, 1]}}],
            "parameters": {"lambda": 0.7},
        },
        "ties": {"merge_method": "ties", "base_model": base, "models": sparse, "parameters": {"normalize": True}},
        "dare_ties": {
            "merge_method": "dare_ties",
            "base_model": base,
            # A density of 1 drops nothing: what is drawn differs by design, and the rest can be compared.
            "models": [{**each, "parameters": {**each["parameters"], "density": 1.0}} for each in sparse],
        },
        "passthrough": {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": a, "layer_range": [0, 3]}]},
                {"sources": [{"model": b, "layer_range": [1, 4], "parameters": {"scale": 0.5}}]},
            ],
        },
    }
    return {name: {**each, "dtype": dtype} for name, each in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the environment that has mergekit and transformers")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    arguments = parser.parse_args()
    for dtype in arguments.dtypes.split(","):
        work = arguments.work / dtype
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "vit-c").exists():
            subprocess.run([arguments.python, "-c", _MAKE, str(work), dtype], check=True)
        for kind in ("llama", "qwen2", "vit"):
            for name, recipe in recipes(kind, work, dtype).items():
                print(f"{dtype:<9} {kind:<6} {name:<21} {compared(recipe, work, arguments.python)}", flush=True)


def compared(recipe: dict[str, Any], work: Path, python: str) -> str:
    path, ours, theirs = work / "recipe.yml", work / "ours", work / "theirs"
    path.write_text(yaml.safe_dump(recipe))
    for folder in (ours, theirs):
        shutil.rmtree(folder, ignore_errors=True)
    flags = ["--no-write-model-card", "--no-copy-tokenizer", "--quiet"]
    done = subprocess.run(
        [python, "-m", "mergekit.scripts.run_yaml", str(path), str(theirs), *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"mergekit failed: {done.stderr.strip().splitlines()[-1][:90]}"
    subprocess.run(
        [sys.executable, "-m", "lifelong", "merge", str(path), str(ours)], check=True, stdout=subprocess.DEVNULL
    )
    first, second = open_model(ours), open_model(theirs)
    if set(first) != set(second):
        return f"other tensors: {sorted(set(first) ^ set(second))[:3]}"
    depths = [json.loads((each / "config.json").read_text())["num_hidden_layers"] for each in (ours, theirs)]
    if depths[0] != depths[1]:
        return f"num_hidden_layers {depths}"
    largest, differ, size = 0.0, 0, 0
    for name in first:
        x, y = (np.asarray(m.values(name).read(0, 10**9), float) for m in (first, second))
        largest = max(largest, float(np.abs(x - y).max() / np.abs(y).max())) if x.size else largest
        differ, size = differ + int(np.count_nonzero(x != y)), size + x.size
    return f"largest difference {largest:.1e}, {differ / size:.2%} of the numbers differ"


if __name__ == "__main__":
    main()
