"""Merging checkpoints on disk: seconds, processor seconds and memory, beside mergekit and beside copying the bytes.

    python benchmarks/merging.py --size 300M --work /fast/disk --mergekit /path/to/its/environment/bin/mergekit-yaml

Makes a base and four experts of Llama's layout with random bfloat16 weights in shards, then runs every recipe with both
programs on the same files, page cache warm, alternating, and copies the same bytes for the floor. Medians are printed,
with the ratio of mergekit's wall time to ours. Memory is the peak of anonymous pages, workers included; mapped inputs
are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import yaml

from lifelong.merging import safetensors

# hidden size, layers, size of the MLP, vocabulary: about as many parameters as the name says
SIZES = {"20M": (256, 8, 1024, 32000), "300M": (1024, 20, 2816, 32000), "1B": (2048, 18, 5632, 32000)}
EXPERTS = 4
SHARD = 2 * 10**8


@dataclass(frozen=True)
class Cost:
    """What one run took: wall and processor seconds, and its peak of private memory in bytes, workers included."""

    wall: float
    cpu: float
    memory: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="300M")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the models and results: 14 bytes a parameter"
    )
    parser.add_argument("--mergekit", help="its mergekit-yaml; without it only we are measured")
    parser.add_argument("--rules", default=",".join(recipes(Path())))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    models = make_models(arguments.work / arguments.size, SIZES[arguments.size])
    wanted = recipes(models)
    rows = []
    for rule in arguments.rules.split(","):
        rows.append(measured(rule, wanted[rule], models, arguments.work, arguments.mergekit, arguments.repeat))
        if not arguments.json:
            print(spelled(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps(rows))


def recipes(models: Path) -> dict[str, dict[str, Any]]:
    """Return a recipe for every rule that is measured."""
    base, experts = str(models / "base"), [str(models / f"expert-{index}") for index in range(EXPERTS)]
    equal = [{"model": each, "parameters": {"weight": 0.25}} for each in experts]
    sparse = [{"model": each, "parameters": {"weight": 0.25, "density": 0.2}} for each in experts]
    return {
        "linear": {"merge_method": "linear", "models": equal, "dtype": "bfloat16"},
        "task_arithmetic": {
            "merge_method": "task_arithmetic",
            "base_model": base,
            "models": equal,
            "dtype": "bfloat16",
        },
        "slerp": {
            "merge_method": "slerp",
            "base_model": experts[0],
            "models": [{"model": each} for each in experts[:2]],
            "parameters": {"t": 0.5},
            "dtype": "bfloat16",
        },
        "ties": {"merge_method": "ties", "base_model": base, "models": sparse, "dtype": "bfloat16"},
        "dare_ties": {"merge_method": "dare_ties", "base_model": base, "models": sparse, "dtype": "bfloat16"},
        "magmax": {
            "merge_method": "magmax",
            "base_model": base,
            "models": [{"model": each} for each in experts],
            "dtype": "bfloat16",
        },
    }


def make_models(folder: Path, size: tuple[int, int, int, int]) -> Path:
    """Write a base and experts near it, in Llama's layout, unless they are there."""
    random = np.random.default_rng(0)
    base: dict[str, np.ndarray[Any, Any]] = {}
    for name, shape in shapes(size).items():
        base[name] = (0.02 * random.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)
    for index in range(-1, EXPERTS):
        path = folder / ("base" if index < 0 else f"expert-{index}")
        if path.exists():
            continue
        near = {
            name: each
            if index < 0
            else (each + 0.002 * random.standard_normal(each.shape, np.float32)).astype(each.dtype)
            for name, each in base.items()
        }
        write(path, near, size)
    return folder


def shapes(size: tuple[int, int, int, int]) -> dict[str, tuple[int, ...]]:
    hidden, layers, inner, vocabulary = size
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for part in "qkvo":
            found[f"{at}.self_attn.{part}_proj.weight"] = (hidden, hidden)
        found[f"{at}.mlp.gate_proj.weight"] = found[f"{at}.mlp.up_proj.weight"] = (inner, hidden)
        found[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        found[f"{at}.input_layernorm.weight"] = found[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    return {**found, "model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def write(path: Path, tensors: dict[str, np.ndarray[Any, Any]], size: tuple[int, int, int, int]) -> None:
    path.mkdir(parents=True)
    groups: list[list[str]] = [[]]
    for name, each in tensors.items():
        if sum(tensors[other].nbytes for other in groups[-1]) + each.nbytes > SHARD and groups[-1]:
            groups.append([])
        groups[-1].append(name)
    weight_map = {}
    for index, names in enumerate(groups):
        file = f"model-{index + 1:05d}-of-{len(groups):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        header, _ = safetensors.layout([(name, "BF16", tensors[name].shape) for name in names], {"format": "pt"})
        with (path / file).open("wb") as out:
            out.write(header)
            for name in names:
                out.write(tensors[name].tobytes())
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    hidden, layers, inner, vocabulary = size
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (path / "config.json").write_text(json.dumps(config))


def measured(
    rule: str, recipe: dict[str, Any], models: Path, work: Path, mergekit: str | None, repeat: int
) -> dict[str, Any]:
    """Return the medians of `repeat` runs of each program, alternating, and of copying the same bytes."""
    path, out = work / f"{rule}.yml", work / "out"
    path.write_text(yaml.safe_dump(recipe))
    inputs = sorted(
        {*(each["model"] for each in recipe["models"]), *([recipe["base_model"]] if "base_model" in recipe else [])}
    )
    lines = {"ours": [sys.executable, "-m", "lifelong", "merge", str(path), str(out)]}
    if mergekit and rule != "magmax":
        lines["mergekit"] = [mergekit, str(path), str(out), "--no-write-model-card", "--no-copy-tokenizer", "--quiet"]
    # Reads every input and writes one file: what no program that merges can do without.
    lines["floor"] = [
        "sh",
        "-c",
        f"cat {' '.join(f'{each}/*.safetensors' for each in inputs)} > /dev/null && cp -r {inputs[0]} {out}",
    ]
    warm(inputs)
    costs: dict[str, list[Cost]] = {name: [] for name in lines}
    for _ in range(repeat):
        for name, line in lines.items():
            shutil.rmtree(out, ignore_errors=True)
            costs[name].append(run(line))
    size = sum(file.stat().st_size for each in inputs for file in Path(each).glob("*.safetensors"))
    medians = {
        name: {field: statistics.median(getattr(each, field) for each in found) for field in ("wall", "cpu", "memory")}
        for name, found in costs.items()
    }
    return {"rule": rule, "bytes_read": size, **medians}


def warm(folders: list[str]) -> None:
    for folder in folders:
        for path in Path(folder).glob("*.safetensors"):
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def run(line: list[str]) -> Cost:
    """Run a program to its end and return what it and its workers took."""
    # Modules are compiled once, as those of an installed package are.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, peak = time.monotonic(), 0
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        while process.poll() is None:
            peak = max(peak, private(process.pid))
            time.sleep(0.02)
        wall = time.monotonic() - began
        if process.returncode:
            assert process.stderr is not None
            raise SystemExit(f"{' '.join(line)}: {process.stderr.read().decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak)


def private(process: int) -> int:
    """Return the bytes of anonymous memory of a process and its children; what they share counts for each of them."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    own = [int(text.split()[1]) * 1024 for text in status.splitlines() if text.startswith("RssAnon")]
    return sum(own) + sum(private(int(child)) for child in children)


def spelled(row: dict[str, Any]) -> str:
    ours, floor = row["ours"], row["floor"]
    text = f"{row['rule']:<16} ours {ours['wall']:6.2f} s ({ours['cpu']:6.2f} cpu, {ours['memory'] / 1e6:5.0f} MB)"
    text += f"  floor {floor['wall']:5.2f} s ({ours['wall'] / floor['wall']:4.1f} x)"
    if "mergekit" in row:
        theirs = row["mergekit"]
        text += f"  mergekit {theirs['wall']:6.2f} s ({theirs['cpu']:6.2f} cpu, {theirs['memory'] / 1e6:5.0f} MB): "
        text += f"{theirs['wall'] / ours['wall']:.1f} x ours"
    return f"{text}  {row['bytes_read'] / ours['wall'] / 1e9:.2f} GB/s"


if __name__ == "__main__":
    main()
