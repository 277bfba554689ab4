"""The page of a merge, or of models that are compared without one: what went in, what came out, what survived."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.reports.columns import UNKNOWN, Cell, human_bytes
from lifelong.reports.page import as_csv, check_name, figures, write_page


def write_merge_report(found: Mapping[str, Any], out: Path) -> Path:
    """Write the page `out` and, in a folder of its name beside it, every chart as CSV, PNG, SVG and PDF.

    Args:
        found: plain values.
            `models`: of each `name`, `role`, `path`, `tensors`, `numbers`, `bytes`, `formats` and `fingerprint`, None
            where it is not known. `experts`: their names; `merged`: the name of their merge, or None; `base`: whether
            changes are counted from one. `all`, `layers`, `kinds` and `tensors`: what was measured over the whole,
            each layer, each kind of tensor in a layer, and each tensor (`layer`, `kind`, `name`, `base_norm`, `norms`
            and `cosines` of the experts and of the merge behind them, `conflicts`, `kept`). `recipe`: YAML, or None.
            `scores` and `normalised`: by model and task; empty where nothing was evaluated. `surroundings`.
        out: the page, for instance `report.html`; replaced only when the new one is whole.

    Returns:
        `out`.

    Raises:
        InputError: an `out` without an ending to tell it from its folder.
        OSError: the disk is full or may not be written.
    """
    # Imported here: drawing libraries take a second to import.
    from lifelong.reports.merge_charts import all_charts

    check_name(out)
    labels = short([*found["experts"], *([found["merged"]] if found["merged"] else [])])
    if found["merged"]:
        labels[-1] += " (merged)"
    experts = labels[: len(found["experts"])]
    drawn = figures(all_charts({**found, "experts": experts}, labels))
    title = ", ".join(experts) if len(experts) <= 4 else f"{len(experts)} models"
    content = {
        "heading": f"{'Merge' if found['recipe'] else 'Comparison'} of {title}",
        "title": title,
        "based": found["base"],
        "headings": [heading for heading, _ in _columns(found)],
        "rows": [(each["name"], [cell(each) for _, cell in _columns(found)]) for each in found["models"]],
        "tasks": list(next(iter(found["scores"].values()), {})),
        "scores": _scores(found),
        "figures": drawn,
        "tensors": as_csv(tensor_table(found["tensors"], labels, experts)),
        "recipe": found["recipe"],
        "surroundings": found["surroundings"],
    }
    return write_page("merge.html.j2", out, drawn, content)


def tensor_table(tensors: Sequence[Mapping[str, Any]], labels: Sequence[str], experts: Sequence[str]) -> list[Any]:
    """Return all that was measured, a row for each tensor."""
    return [
        {
            "tensor": each["name"],
            "layer": each["layer"],
            "kind": each["kind"],
            "shape": "x".join(map(str, each["shape"])),
            "base norm": each["base_norm"],
            **{f"norm of {label}": norm for label, norm in zip(labels, each["norms"], strict=True)},
            **{
                f"cosine of {labels[i]} and {labels[j]}": each["cosines"][i][j]
                for i, j in itertools.combinations(range(len(labels)), 2)
            },
            "sign conflicts": each["conflicts"],
            **{f"kept of {label}": share for label, share in zip(experts, each["kept"], strict=False)},
        }
        for each in tensors
    ]


def short(names: Sequence[str]) -> list[str]:
    """Return names of models without the folders that all of them lie in."""
    parts = [Path(name).parts for name in names]
    folders = zip(*(each[:-1] for each in parts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda same: len(set(same)) == 1, folders))
    return [str(Path(*each[shared:])) for each in parts]


def _columns(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return headings and cells of the table of models."""
    measured = found["all"]
    places = {("expert", name): place for place, name in enumerate(found["experts"])}

    def change(model: Mapping[str, Any]) -> Cell:
        place = -1 if model["role"] == "merged" else places.get((model["role"], model["name"]))
        if place is None or not measured["base_norm"]:
            return UNKNOWN
        return _percent(measured["norms"][place] / measured["base_norm"], 2)

    def kept(model: Mapping[str, Any]) -> Cell:
        place = places.get((model["role"], model["name"]))
        known = place is not None and measured["norms"][place]
        return _percent(measured["kept"][place], 1) if known else UNKNOWN

    def of(key: str, text: Any) -> Any:
        return lambda model: UNKNOWN if model[key] is None else (text(model[key]), model[key])

    columns = [
        ("Role", of("role", str)),
        ("Tensors", of("tensors", "{:,}".format)),
        ("Numbers", of("numbers", "{:,}".format)),
        ("Size", of("bytes", human_bytes)),
        ("Format", of("formats", str)),
        ("Change", change),
        *([("Kept", kept)] if measured["kept"] else []),
    ]
    known = any(each["fingerprint"] for each in found["models"])
    return columns + ([("Fingerprint", of("fingerprint", str))] if known else [])


def _percent(share: float, digits: int) -> Cell:
    return (f"{share:.{digits}%}", share) if math.isfinite(share) else UNKNOWN


def _scores(found: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    """Return, for each model, what it reached on each task, and as a share of the best expert."""
    return [
        (name, [(f"{score:.4g} ({found['normalised'][name][task]:.1%})", score) for task, score in each.items()])
        for name, each in found["scores"].items()
    ]
