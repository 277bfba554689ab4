"""Made-up results in the shape of `result.json`, with numbers that look like those of real methods."""

from __future__ import annotations

import random
from typing import Any

# Forgotten of a task with each later one, cost relative to naive, bytes kept, old data, task label.
METHODS = {
    "naive": (0.12, 1.0, 0, False, False),
    "joint": (0.001, 3.1, 0, True, False),
    "l2": (0.06, 1.1, 720_000, False, False),
    "ewc": (0.04, 1.2, 1_440_000, False, False),
    "online-ewc": (0.035, 1.25, 1_440_000, False, False),
    "mas": (0.03, 1.3, 1_440_000, False, False),
    "si": (0.045, 1.15, 2_160_000, False, False),
    "rwalk": (0.032, 1.4, 2_880_000, False, False),
    "packnet": (0.0, 1.6, 180_000, False, True),
    "replay": (0.01, 2.0, 31_360_000, True, False),
}


def result(
    label: str = "ewc", seed: int = 0, *, tasks: int = 5, method: str | None = None, **changes: Any
) -> dict[str, Any]:
    """Return one made-up result of the method `label`, with `changes` over its fields."""
    lost, cost, kept, old, labelled = METHODS.get(label, METHODS["ewc"])
    draw = random.Random(f"{label} {seed}")
    best = [0.97 - 0.4 * lost * (label != "naive") + draw.uniform(-0.01, 0.01) for _ in range(tasks)]
    accuracy = [[0.1 + draw.uniform(-0.02, 0.02) for _ in range(tasks)]]
    for after in range(1, tasks + 1):
        seen = [best[j] - lost * (after - 1 - j) + draw.uniform(-0.01, 0.01) for j in range(after)]
        accuracy.append([min(max(a, 0.0), 1.0) for a in seen] + accuracy[0][after:])
    diagonal = [accuracy[j + 1][j] for j in range(tasks)]
    final = accuracy[-1]
    past = [best[j] - final[j] for j in range(tasks - 1)]
    train = 10 * cost + draw.uniform(0, 1)
    made: dict[str, Any] = {
        "lifelong": "0.1.0",
        "recipe": {
            "stream": "permuted",
            "data": "digits",
            "scenario": "domain",
            "tasks": tasks,
            "epochs": 3,
            "method": {"name": method or label} | ({"strength": 100.0} if "ewc" in label else {}),
            "model": {"name": "mlp", "hidden": [256, 256]},
            "seed": seed,
        },
        "experiment": None,
        "label": label,
        "method": method or label,
        "settings": {"strength": 100.0},
        "seed": seed,
        "stream": "permuted",
        "data": "digits",
        "scenario": "domain",
        "tasks": [f"permutation {number}" for number in range(1, tasks + 1)],
        "accuracy": accuracy,
        "average_accuracy": sum(final) / tasks,
        "average_incremental_accuracy": 0.9,
        "forgetting": sum(past) / len(past) if past else None,
        "backward_transfer": None,
        "forward_transfer": 0.01,
        "intransigence": None,
        "learning_accuracy": sum(diagonal) / tasks,
        "new_accuracy": sum(diagonal) / tasks,
        "old_accuracy": sum(final[:-1]) / (tasks - 1) if tasks > 1 else None,
        "seconds": {"train": train, "consolidate": 0.5, "evaluate": 1.0, "total": train + 1.5},
        "train_samples_per_second": 90_000.0 / cost,
        "predict_samples_per_second": 410_000.0 + 1000 * draw.random(),
        "memory": {
            "model_bytes": 720_000,
            "method_bytes": kept,
            "stored_samples": 500 * old,
            "peak_rss_bytes": 400_000_000,
        },
        "needs_old_data": old,
        "needs_task_id": labelled,
        "parameters": 180_000,
        "device": "cpu",
        "threads": 2,
        "torch": "2.4.0",
        "python": "3.11.7",
        "platform": "Linux x86_64, some processor",
        "finished": f"2026-01-0{seed + 1}T12:00:00+00:00",
        "expected": None,
    }
    return {**made, **changes}


def comparison(seeds: int = 3, **changes: Any) -> list[dict[str, Any]]:
    """Return results of every made-up method, `seeds` times."""
    return [result(label, seed, **changes) for label in METHODS for seed in range(seeds)]


def merge(experts: int = 2, layers: int = 3, **changes: Any) -> dict[str, Any]:
    """Return what the page of a merge is made from, with `changes` over its fields."""
    draw = random.Random(experts * layers)
    names = [f"models/expert-{number}" for number in range(experts)]

    def measured(name: str, layer: str, kind: str) -> dict[str, Any]:
        cosine = draw.uniform(-0.2, 0.5)
        rows = [[1.0 if i == j else cosine for j in range(experts + 1)] for i in range(experts + 1)]
        return {
            "name": name,
            "layer": layer,
            "kind": kind,
            "shape": [8, 8],
            "base_norm": 8.0,
            "norms": [draw.uniform(0.1, 0.8) for _ in range(experts + 1)],
            "cosines": rows,
            "conflicts": draw.random(),
            "kept": [draw.uniform(0, 1) for _ in range(experts)],
        }

    spots = [("embed", "", "embed.weight")]
    spots += [(str(i), kind, f"layers.{i}.{kind}.weight") for i in range(layers) for kind in ("attn", "mlp")]
    tensors = [measured(name, layer, kind) for layer, kind, name in spots]
    roles = {"models/base": "base", **dict.fromkeys(names, "expert"), "models/out": "merged"}
    made: dict[str, Any] = {
        "models": [
            {
                "name": name,
                "role": role,
                "path": f"/{name}",
                "tensors": len(tensors),
                "numbers": 64 * len(tensors),
                "bytes": 128 * len(tensors),
                "formats": "BF16",
                "fingerprint": f"{place:032x}",
            }
            for place, (name, role) in enumerate(roles.items())
        ],
        "experts": names,
        "merged": "models/out",
        "base": True,
        "all": measured("all", "", ""),
        "layers": [measured(layer, layer, "") for layer in dict.fromkeys(layer for layer, _, _ in spots)],
        "kinds": tensors,
        "tensors": tensors,
        "recipe": "merge_method: ties\n",
        "scores": {},
        "normalised": {},
        "surroundings": {"lifelong": "0.1.0"},
    }
    return {**made, **changes}


def search(trials: int = 8, scores: tuple[str, ...] = ("films", "books"), **changes: Any) -> dict[str, Any]:
    """Return what the page of a search is made from, with `changes` over its fields."""
    draw = random.Random(trials)
    tried = [
        {
            "number": number,
            "values": {"models.0.weight": draw.random(), "merge_method": draw.choice(["ties", "linear"])},
            "scores": {score: draw.random() for score in scores},
        }
        for number in range(trials)
    ]
    made: dict[str, Any] = {
        "trials": tried,
        "front": [0, 3],
        "minimize": False,
        "unknowns": [
            {"name": "models.0.weight", "log": True, "choices": ()},
            {"name": "merge_method", "log": False, "choices": ("ties", "linear")},
        ],
        "recipe": "merge_method: {choose: [ties, linear]}\n",
        "surroundings": {"lifelong": "0.1.0"},
    }
    return {**made, **changes}
