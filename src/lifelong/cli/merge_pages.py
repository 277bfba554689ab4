"""The pages of `lifelong merge`: what was found, as the plain values that reports are made from."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong import __version__
from lifelong.errors import InputError

if TYPE_CHECKING:
    from lifelong.merging.checkpoint import Model
    from lifelong.merging.inspection import Inspected
    from lifelong.merging.plan import Plan

Scores = Mapping[str, Mapping[str, float]]


def write_merge_page(plan: Plan, out: Path, scores: Scores, normalised: Scores, *, threads: int | None) -> Path:
    """Write `report.html` into the result `out` of a merge that has been run, and return it."""
    import yaml

    from lifelong.merging import inspection, manifest
    from lifelong.merging.checkpoint import open_model
    from lifelong.reports import write_page_and_values

    merged = open_model(out)
    said = manifest.read(out)
    inputs, result = manifest.fingerprints(said)
    experts = inspection.experts_of(plan)
    bases = {job.base.model for job in plan.jobs if job.base is not None}
    # Experts that were merged earlier are in the manifest alone, and statistics are neither base nor expert.
    rows = [
        _described(name, _role(name, plan, experts, bases), plan.models.get(name), inputs.get(name))
        for name in dict.fromkeys([*plan.models, *inputs])
    ]
    rows.append(_described(str(out), "merged", merged, result))
    found = list(inspection.inspect_merge(plan, merged, threads=threads))
    values = {
        "models": rows,
        "experts": experts,
        "merged": str(out),
        "base": bool(bases),
        **_measured(found),
        "recipe": yaml.safe_dump(said["recipe"], sort_keys=False),
        "scores": {**scores},
        "normalised": normalised,
        "surroundings": _surroundings(),
    }
    return write_page_and_values("merge", values, out / "report.html")


def write_inspection_page(
    found: Sequence[Inspected], experts: Mapping[str, Model], base: Model | None, merged: Model | None, page: Path
) -> Path:
    """Write the page of models that are compared, as `inspection.inspect` found them, and return it."""
    from lifelong.reports import write_page_and_values

    given = [("base", base), *(("expert", each) for each in experts.values()), ("merged", merged)]
    names = [str(base and base.path), *experts, str(merged and merged.path)]
    rows = [
        _described(name, role, model, None)
        for name, (role, model) in zip(names, given, strict=True)
        if model is not None
    ]
    values = {
        "models": rows,
        "experts": list(experts),
        "merged": None if merged is None else str(merged.path),
        "base": base is not None,
        **_measured(found),
        "recipe": None,
        "scores": {},
        "normalised": {},
        "surroundings": _surroundings(),
    }
    return write_page_and_values("merge", values, page)


def write_search_page(recipe: Mapping[str, Any], out: Path, *, minimize: bool) -> Path:
    """Write `report.html` into the folder `out` of a search, of all its trials, and return it."""
    import yaml

    from lifelong.merging.search import TRIALS, Tried, front, unknowns
    from lifelong.reports import write_page_and_values

    trials = json.loads((out / TRIALS).read_text(encoding="utf-8"))
    values = {
        "trials": trials,
        "front": [each.number for each in front([Tried(**each) for each in trials], minimize)],
        "minimize": minimize,
        "unknowns": [{**dataclasses.asdict(each), "name": each.name} for each in unknowns(recipe)],
        "recipe": yaml.safe_dump(dict(recipe), sort_keys=False),
        "surroundings": _surroundings(),
    }
    return write_page_and_values("search", values, out / "report.html")


def _measured(found: Sequence[Inspected]) -> dict[str, Any]:
    """Return what was found over the whole, by layer, by kind of tensor in a layer, and by tensor."""
    from lifelong.merging.inspection import by_layer, overall
    from lifelong.merging.layers import spots

    if not found:
        raise InputError("the models have no tensors of fractions: there is nothing to compare")
    placed = spots([each.name for each in found])

    def listed(groups: Sequence[tuple[Any, Inspected]]) -> list[dict[str, Any]]:
        return [{"layer": spot.layer, "kind": spot.kind, **dataclasses.asdict(each)} for spot, each in groups]

    return {
        "all": dataclasses.asdict(overall(found)),
        "layers": listed(by_layer(found)),
        "kinds": listed(by_layer(found, kinds=True)),
        "tensors": listed([(placed[each.name], each) for each in found]),
    }


def _role(name: str, plan: Plan, experts: Sequence[str], bases: set[str]) -> str:
    if name in bases:
        return "base"
    if name in experts:
        return "expert"
    return "statistics" if name in plan.models else "expert, merged before"


def _described(name: str, role: str, model: Model | None, fingerprint: str | None) -> dict[str, Any]:
    entries = [] if model is None else [model.entry(tensor) for tensor in model]
    return {
        "name": name,
        "role": role,
        "path": None if model is None else str(model.path.resolve()),
        "tensors": None if model is None else len(entries),
        "numbers": None if model is None else sum(math.prod(entry.shape) for entry in entries),
        "bytes": None if model is None else sum(entry.stop - entry.start for entry in entries),
        "formats": None if model is None else ", ".join(sorted({entry.dtype for entry in entries})),
        "fingerprint": fingerprint,
    }


def _surroundings() -> dict[str, str]:
    return {
        "lifelong": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
