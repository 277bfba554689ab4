"""Adding experts to a merge that is there, as if they had been merged with the others from the beginning."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.errors import InputError
from lifelong.merging import planning, safetensors
from lifelong.merging.checkpoint import Checkpoint, Model, open_model
from lifelong.merging.engine import MANIFEST
from lifelong.merging.manifest import read
from lifelong.merging.output import RUNNING
from lifelong.merging.plan import Job, Plan, Source
from lifelong.merging.recipe import Input, MergeRecipe, parsed
from lifelong.merging.rule import Folding
from lifelong.merging.rules import RULES
from lifelong.merging.statistics import described
from lifelong.merging.work import part_name


def kept(plan: Plan) -> Plan:
    """Return `plan` so that the state from which more experts can be added is stored with the result.

    Raises:
        InputError: the rule must see all experts at once, or layers are taken apart.
    """
    for job in plan.jobs:
        if job.rule is not None and not isinstance(job.rule, Folding):
            able = ", ".join(name for name, rule in RULES.items() if issubclass(rule, Folding))
            raise InputError(
                f"merge method {plan.recipe['merge_method']} must see all experts at once; one at a time can {able}"
            )
    if "slices" in plan.recipe:
        raise InputError("experts can be added to merges of whole models, not of slices")
    return dataclasses.replace(plan, keep_running=True)


def added(folder: Path, experts: Sequence[Mapping[str, Any]]) -> Plan:
    """Return the plan that adds experts to the merge in `folder`; run it with `replace`.

    The other experts are not read and need not exist any more; the base is, and must be what it was.

    Args:
        folder: the result of a merge that kept its running state.
        experts: `model` and perhaps `parameters` of each, as recipes have them.

    Raises:
        InputError: no such folder, one that kept no state, or an expert that does not fit.
        StateError: the manifest of the folder is damaged.
    """
    manifest = read(folder)
    state = folder / f"{RUNNING}.safetensors"
    if not state.is_file():
        raise InputError(f"{folder} kept no state to add to: merge with --keep-running first")
    before = parsed(manifest["recipe"], str(folder / MANIFEST))
    inputs = [Input.model_validate(dict(each)) for each in experts]
    twice = {each.model for each in inputs} & set(before.names())
    if twice:
        raise InputError(f"{sorted(twice)[0]} is in {folder} already")
    recipe = before.model_copy(update={"models": [*(before.models or []), *inputs]})
    merged = open_model(folder)
    whole = planning.plan(recipe, stand_ins=_stand_ins(before, manifest, merged))
    running = Checkpoint(state, (file := safetensors.read(state),), dict.fromkeys(file.entries, file))
    jobs = tuple(_continued(job, running, len(inputs)) for job in whole.jobs)
    for job in jobs:
        _check_statistics(job, manifest["tensors"][job.name]["sources"], before.names())
    names = {source.model for job in jobs for source in (*job.sources, *job.statistics)}
    models = {name: model for name, model in whole.models.items() if name in names}
    expected = {name: each["sources"] for name, each in manifest["tensors"].items()}
    return dataclasses.replace(kept(whole), jobs=jobs, models=models, expected=expected)


def _stand_ins(recipe: MergeRecipe, manifest: Mapping[str, Any], merged: Checkpoint) -> dict[str, Model]:
    """Return the merged model for every expert in it, which has the same tensors, and the base from where it was."""
    found: dict[str, Model] = dict.fromkeys(recipe.names(), merged)
    if recipe.base_model is not None and RULES[recipe.merge_method].takes_base:
        found[recipe.base_model] = open_model(Path(manifest["models"][recipe.base_model]))
    return found


def _continued(job: Job, running: Checkpoint, new: int) -> Job:
    """Return `job` for its last `new` experts alone, going on from the state that the others left."""
    if not isinstance(job.rule, Folding):
        return job
    parts = itertools.takewhile(running.__contains__, (part_name(part, job.name) for part in itertools.count()))
    state = tuple(Source(RUNNING, name, running.values(name)) for name in parts)
    return dataclasses.replace(job, experts=job.experts[-new:], running=state, before=len(job.experts) - new)


def _check_statistics(job: Job, before: Mapping[str, str], names: Sequence[str]) -> None:
    """Refuse a tensor of which the experts that are merged already have statistics and new ones lack them, or so.

    Args:
        job: of the new experts.
        before: the sources of the tensor in the merge, as the manifest names them.
        names: of the experts in it.
    """
    kind = job.rule.statistic if job.rule is not None else ""
    had = any(described(name, kind) in before for name in names)
    if kind and had != bool(job.statistics) and 0 not in job.shape:
        first, second = ("have", "lacks") if had else ("lack", "has")
        raise InputError(
            f"tensor {job.name!r}: the experts that are merged already {first} {kind} statistics, and "
            f"{job.experts[0].model} {second} them"
        )
