"""From a recipe to a plan: which tensors of which models make each tensor of the result, by what rule."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifelong import settings
from lifelong.errors import InputError, closest, unknown
from lifelong.merging import layers, vocabulary
from lifelong.merging.checkpoint import Model, open_model
from lifelong.merging.formats import named
from lifelong.merging.lora import AdaptedModel, is_adapter, with_adapter
from lifelong.merging.plan import Job, Plan, Source, check, common_names, mergeable
from lifelong.merging.recipe import MergeRecipe, Parameters, Scalar, Slice, SliceInput, looked_up
from lifelong.merging.rule import Rule
from lifelong.merging.rules import RULES
from lifelong.merging.statistics import check_presence, described, opened, path_of
from lifelong.merging.vocabulary import Alignment

# Files of a model that its answers depend on, besides weights and config.
CARRIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.json",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)

_VOCABULARIES = ("tokenizer.model", "merges.txt", "vocab.json", "vocab.txt", "added_tokens.json")

# Settings of mergekit that say how it computes and change nothing of ours.
_IGNORED = ("int8_mask",)


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the result: its name there, its slice, its depth in it, and its name in each source's model."""

    name: str
    slice: Slice
    depth: float
    names: tuple[str, ...]


def plan(recipe: MergeRecipe, folder: Path = Path(), stand_ins: Mapping[str, Model] | None = None) -> Plan:
    """Return what `recipe` asks for, checked; nothing has been written, and of the weights only headers were read.

    Args:
        recipe: the merge.
        folder: what relative paths of models start from.
        stand_ins: models that are not read, but have the tensors of those so named.

    Raises:
        InputError: an unknown method or parameter (with the closest), a model that cannot be read, tensors that are
            missing, left over or of other shapes (all of them listed), or settings that do not fit.
    """
    if recipe.merge_method not in RULES:
        raise unknown("merge method", recipe.merge_method, RULES)
    rule = RULES[recipe.merge_method]
    _check_parameters(recipe, rule)
    known = stand_ins or {}
    models = {name: known.get(name) or _opened(folder, name) for name in recipe.names()}
    slices = recipe.slices or [_whole(recipe, models)]
    tensors = _tensors(recipe, slices, models)
    aligned = vocabulary.alignment(recipe, models)
    # Of stand-ins nothing is read, their statistics neither.
    informed = {name: model for name, model in models.items() if name not in known}
    statistics = _opened_statistics(rule, informed)
    jobs = tuple(_job(recipe, rule, tensor, models, aligned, statistics, known) for tensor in tensors)
    check(jobs)
    # What the statistics are of tells this merge from another as the weights do.
    models |= {described(name, rule.statistic): each for name, each in statistics.items()}
    donor = models[recipe.base_model or recipe.names()[0]]
    carried = _carried(recipe, slices, donor, aligned) | vocabulary.chat_template(recipe, models)
    return Plan(jobs, models, carried, recipe=recipe.model_dump(exclude_defaults=True, mode="json"))


def _opened(folder: Path, name: str) -> Model:
    """Return the model called `name`: a path, or a path and that of an adapter with a plus between them."""
    path, plus, adapter = name.rpartition("+")
    if not plus or (folder / name).exists():
        model = open_model(folder / name)
        if is_adapter(model):
            raise InputError(f"{name} is an adapter: write MODEL+{name}, or merge adapters with adapters alone")
        return model
    return with_adapter(open_model(folder / path), folder / adapter)


def _check_parameters(recipe: MergeRecipe, rule: type[Rule]) -> None:
    """Refuse parameters that the rule does not have, anywhere in the recipe."""
    known = {*_fields(rule), *_IGNORED, *rule.ignored}
    groups: list[Parameters] = [recipe.parameters, *(each.parameters for each in recipe.models or [])]
    for each in recipe.slices or []:
        groups += [each.parameters, *(source.parameters for source in each.sources)]
    for name in (name for group in groups for name in group):
        if name not in known:
            raise InputError(
                f"merge method {recipe.merge_method} has no parameter {name!r}"
                f"{closest(name, known) or f': it has {sorted(set(known) - set(_IGNORED))}'}"
            )


def _fields(rule: type[Rule]) -> dict[str, str]:
    """Return the fields of a rule by the names that recipes have for them."""
    spelled = {field: word for word, field in rule.spelled.items()}
    return {spelled.get(field.name, field.name): field.name for field in settings.fields(rule)}


def _whole(recipe: MergeRecipe, models: Mapping[str, Model]) -> Slice:
    """Return the slice that takes whole models; its layer ranges are not looked at."""
    inputs = [
        SliceInput(model=each.model, parameters=each.parameters, layer_range=(0, 0)) for each in recipe.models or []
    ]
    return Slice(sources=inputs)


def _tensors(recipe: MergeRecipe, slices: Sequence[Slice], models: Mapping[str, Model]) -> list[_Tensor]:
    if recipe.slices is None:
        names = common_names(models)
        counts = layers.stacks(names)
        sources = len(slices[0].sources)
        return [_Tensor(name, slices[0], layers.depth_of(name, counts), (name,) * sources) for name in names]
    return _sliced(slices, models)


def _sliced(slices: Sequence[Slice], models: Mapping[str, Model]) -> list[_Tensor]:
    """Return the tensors of a result whose layers are listed slice by slice.

    Embeddings and the like are of the first slice's models, everything else outside the layers is of the last's.
    """
    mains = {name: layers.main_stack(model, model.config, name) for name, model in models.items()}
    for each in slices:
        _check_ranges(each, models, mains)
    first = slices[0].sources[0].model
    places = {name: layers.place_of(name) for name in models[first]}
    outside = [name for name, place in places.items() if place is None or place.stack != mains[first]]
    before = [name for name in outside if layers.begins(name)]
    after = [name for name in outside if not layers.begins(name)]
    found = [_Tensor(name, slices[0], 0.0, (name,) * len(slices[0].sources)) for name in before]
    layer = 0
    for each in slices:
        start, stop = each.sources[0].layer_range
        for offset in range(stop - start):
            depth = offset / (stop - start - 1) if stop - start > 1 else 1.0
            found += _of_layer(each, models, mains, layer, offset, depth)
            layer += 1
    return found + [_Tensor(name, slices[-1], 0.0, (name,) * len(slices[-1].sources)) for name in after]


def _of_layer(
    part: Slice, models: Mapping[str, Model], mains: Mapping[str, str], layer: int, offset: int, depth: float
) -> list[_Tensor]:
    """Return the tensors of layer `layer` of the result: those of layer `offset` of the slice."""
    lead = part.sources[0]
    wanted = lead.layer_range[0] + offset
    found = []
    for name in models[lead.model]:
        place = layers.place_of(name)
        if place is None or place.stack != mains[lead.model] or place.layer != wanted:
            continue
        names = tuple(f"{mains[source.model]}.{source.layer_range[0] + offset}.{place.rest}" for source in part.sources)
        for source, own in zip(part.sources, names, strict=True):
            if own not in models[source.model]:
                raise InputError(
                    f"{source.model} has no tensor {own!r}, which {name!r} of {lead.model} would merge with"
                )
        found.append(_Tensor(place.named(layer), part, depth, names))
    return found


def _check_ranges(part: Slice, models: Mapping[str, Model], mains: Mapping[str, str]) -> None:
    lengths = {source.layer_range[1] - source.layer_range[0] for source in part.sources}
    if len(lengths) > 1:
        raise InputError(f"the sources of a slice must have as many layers each, and have {sorted(lengths)}")
    for source in part.sources:
        start, stop = source.layer_range
        count = layers.stacks(models[source.model])[mains[source.model]]
        if not 0 <= start < stop <= count:
            raise InputError(f"layer_range [{start}, {stop}] of {source.model}: it has the layers 0 to {count - 1}")


def _job(
    recipe: MergeRecipe,
    rule: type[Rule],
    tensor: _Tensor,
    models: Mapping[str, Model],
    aligned: Alignment | None,
    statistics: Mapping[str, Model],
    stand_ins: Mapping[str, Model],
) -> Job:
    base_name = tensor.slice.base_model or recipe.base_model
    listed = list(zip(tensor.slice.sources, tensor.names, strict=True))
    base = None
    if base_name is not None and rule.takes_base:
        own = next((name for source, name in listed if source.model == base_name), tensor.names[0])
        if own not in models[base_name]:
            raise InputError(f"the base model {base_name} has no tensor {own!r}")
        base = Source(base_name, own, models[base_name].values(own))
        listed = [(source, name) for source, name in listed if source.model != base_name]
    experts = tuple(Source(each.model, name, models[each.model].values(name)) for each, name in listed)
    if not experts:
        raise InputError(f"merge method {recipe.merge_method}: no model beside the base is given")
    sources = (*((base,) if base else ()), *experts)
    dtypes = [models[source.model].entry(source.name).dtype for source in sources]
    wanted = recipe.out_dtype or recipe.dtype
    if not mergeable(sources, dtypes):
        # Counters and masks: the base's, or the first model's, bit for bit.
        return Job(tensor.name, dtypes[0], None, None, sources[:1])
    if aligned is not None:
        base = base and _aligned(base, sources, models, aligned)
        experts = tuple(_aligned(each, sources, models, aligned) for each in experts)
    made = _rule(recipe, rule, tensor, listed)
    known = _statistics(rule, [each for each in experts if each.model not in stand_ins], models, statistics)
    return Job(tensor.name, named(wanted) if wanted else dtypes[0], made, base, experts, statistics=known)


def _opened_statistics(rule: type[Rule], models: Mapping[str, Model]) -> dict[str, Model]:
    """Return the statistics that the rule needs of those models that have them, by the models' names."""
    return opened({name: _statistics_path(model, rule) for name, model in models.items()}) if rule.statistic else {}


def _statistics_path(model: Model, rule: type[Rule]) -> Path:
    return path_of(model.adapter.path if isinstance(model, AdaptedModel) else model.path, rule.statistic)


def _statistics(
    rule: type[Rule], experts: Sequence[Source], models: Mapping[str, Model], known: Mapping[str, Model]
) -> tuple[Source, ...]:
    """Return the statistics of one tensor in every expert, or none where none of them has it."""
    kind = rule.statistic
    if not kind:
        return ()
    for each in experts:
        if each.model not in known:
            path = _statistics_path(models[each.model], rule)
            raise InputError(
                f"{each.model} has no {kind} statistics, which the rule needs: expected {path} "
                f"(`lifelong merge statistics` writes it for text classifiers, lifelong.merging.collect for others)"
            )
    check_presence(experts[0].name, kind, [each.name in known[each.model] for each in experts])
    return tuple(
        Source(described(each.model, kind), each.name, known[each.model].values(each.name))
        for each in experts
        if each.name in known[each.model]
    )


def _aligned(source: Source, sources: Sequence[Source], models: Mapping[str, Model], aligned: Alignment) -> Source:
    """Return `source` in the vocabulary of the result, if its tensor has a row for each token."""
    if not aligned.concerns({each.model: each.values.shape for each in sources}):
        return source
    every = {name: model.values(source.name) for name, model in models.items() if source.name in model}
    return dataclasses.replace(source, values=aligned.realigned(source.model, every))


def _rule(recipe: MergeRecipe, rule: type[Rule], tensor: _Tensor, listed: Sequence[tuple[SliceInput, str]]) -> Rule:
    """Return the rule for one tensor, with the values that its parameters have there."""
    shared = [tensor.slice.parameters, recipe.parameters]
    values: list[tuple[str, Any]] = []
    for word, field in _fields(rule).items():
        if field in rule.per_expert:
            own = [looked_up([source.parameters, *shared], word, name, tensor.depth) for source, name in listed]
            if any(each is not None for each in own):
                values.append((field, tuple(_default(rule, field) if each is None else each for each in own)))
        else:
            every = [*(source.parameters for source in tensor.slice.sources), *shared]
            found = looked_up(every, word, tensor.name, tensor.depth)
            if found is not None:
                values.append((field, found))
    return _built(recipe.merge_method, tuple(values))


def _default(rule: type[Rule], field: str) -> Scalar:
    value = next(settings.default_of(each) for each in settings.fields(rule) if each.name == field)
    if not isinstance(value, bool | int | float | str):
        raise InputError(f"parameter {field!r} must be given for every model, or for none")
    return value


@functools.lru_cache(maxsize=1024)
def _built(method: str, values: tuple[tuple[str, Any], ...]) -> Rule:
    return settings.build(RULES[method], dict(values), f"merge method {method}")


def _carried(
    recipe: MergeRecipe, slices: Sequence[Slice], donor: Model, aligned: Alignment | None
) -> dict[str, Path | str]:
    """Return the files that the result gets from the base or the first model."""
    if not donor.path.is_dir():
        return {}
    carried: dict[str, Path | str] = {name: donor.path / name for name in CARRIED if (donor.path / name).is_file()}
    config = dict(donor.config)
    if aligned is not None:
        # Other files of a tokenizer would speak of another vocabulary than the one that it has now.
        carried = {name: each for name, each in carried.items() if name not in _VOCABULARIES} | dict(aligned.carried)
        config |= {"vocab_size": aligned.rows} if "vocab_size" in config else {}
    if config:
        if recipe.slices is not None:
            taken = [layer for each in slices for layer in range(*each.sources[0].layer_range)]
            config = layers.sliced_config(config, taken)
        wanted = recipe.out_dtype or recipe.dtype
        for key in ("torch_dtype", "dtype"):
            if wanted and key in config:
                config[key] = wanted.removeprefix("torch.")
        carried["config.json"] = json.dumps(config, indent=2) + "\n"
    return carried
