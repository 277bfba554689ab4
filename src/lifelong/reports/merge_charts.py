"""The charts of a merge, one function each: how far models went from the base, whether they agree, what a merge kept.

Models have hundreds of tensors; charts show layers, and kinds of tensors within them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from lifelong.reports.chart import COLOURS, HEIGHT, WIDTH, Chart, as_spec, looks

_OUTSIDE = "outside the layers"
# Numbers would not fit into the cells of more models than these.
_NUMBERED = 12


def all_charts(found: Mapping[str, Any], labels: Sequence[str]) -> list[Chart]:
    """Return the charts of a merge; some may have nothing to show.

    Args:
        found: as `write_merge_report` takes it.
        labels: of the models that norms and cosines are of: the experts and, where there is one, their merge.
    """
    return [function(found, labels) for function in (change, cosines, least_cosine, conflicts, kept)]


def change(found: Mapping[str, Any], labels: Sequence[str]) -> Chart:
    """Return lines of how far each model went, relative to the base: a panel for each kind of tensor."""
    records = [
        {"label": label, "kind": each["kind"] or _OUTSIDE, "layer": each["layer"], "change": _share(norm, each)}
        for each in found["kinds"]
        for label, norm in zip(labels, each["norms"], strict=True)
        if any(found["all"]["norms"]) and _share(norm, each) is not None
    ]
    kinds = list(dict.fromkeys(record["kind"] for record in records if record["kind"] != _OUTSIDE))
    cell = _lines(found, labels, alt.Y("change:Q", title="change", axis=alt.Axis(format="%")), ["kind:N"])
    facet = alt.Facet("kind:N", title=None, sort=[*kinds, _OUTSIDE])
    chart = cell.properties(width=260, height=180).facet(facet, data=alt.InlineData([]), columns=2)
    return Chart(
        "change-by-layer",
        "How far each model went",
        "Norm of a model's change over that of the base, by layer; a panel for each part of a layer.",
        records,
        as_spec(chart.resolve_scale(x="independent", y="independent"), records),
    )


def cosines(found: Mapping[str, Any], labels: Sequence[str]) -> Chart:
    """Return a heat map of the cosines between the changes of whole models."""
    cells = found["all"]["cosines"]
    records = [
        {"label": one, "other": other, "cosine": _rounded(cells[i][j])}
        for i, one in enumerate(labels)
        for j, other in enumerate(labels)
        if len(labels) > 1 and any(found["all"]["norms"])
    ]
    order = list(labels)
    base = alt.Chart().encode(
        x=alt.X("label:N", title=None, sort=order, axis=alt.Axis(labelAngle=-45)),
        y=alt.Y("other:N", title=None, sort=order),
    )
    # Blue and orange are told apart with all kinds of colour vision; white is no relation.
    scale = alt.Scale(domain=[-1, 0, 1], range=[COLOURS[1], "#FFFFFF", COLOURS[0]], interpolate="rgb")
    tips = ["label:N", "other:N", alt.Tooltip("cosine:Q", format=".3f")]
    layers = [base.mark_rect().encode(color=alt.Color("cosine:Q", scale=scale), tooltip=tips)]
    if len(labels) <= _NUMBERED:
        ink = alt.condition("abs(datum.cosine) > 0.6", alt.value("white"), alt.value("black"))
        layers.append(base.mark_text(fontSize=11).encode(text=alt.Text("cosine:Q", format=".2f"), color=ink))
    side = min(HEIGHT, 60 * len(labels))
    return Chart(
        "cosines",
        "Whether models went the same way",
        "Cosine between the changes of whole models: 1 the same way, 0 unrelated, -1 opposite ways.",
        records,
        as_spec(alt.layer(*layers).properties(width=WIDTH, height=side), records),
    )


def least_cosine(found: Mapping[str, Any], _: Sequence[str]) -> Chart:
    """Return the line of the least cosine between two experts, by layer."""
    names, records = found["experts"], []
    for each in found["layers"]:
        pairs = [
            (each["cosines"][i][j], f"{names[j]}, {names[i]}")
            for i in range(len(names))
            for j in range(i)
            if each["norms"][i] and each["norms"][j] and math.isfinite(each["cosines"][i][j])
        ]
        if pairs:
            cosine, pair = min(pairs)
            records.append({"layer": each["layer"], "cosine": _rounded(cosine), "between": pair})
    y = alt.Y("cosine:Q", title="least cosine", scale=alt.Scale(zero=False))
    return Chart(
        "least-cosine-by-layer",
        "Where models agree least",
        "Least cosine between the changes of any two experts, by layer.",
        records,
        as_spec(_single(found, y, ["layer:O", alt.Tooltip("cosine:Q", format=".3f"), "between:N"]), records),
    )


def conflicts(found: Mapping[str, Any], _: Sequence[str]) -> Chart:
    """Return the line of sign conflicts, by layer."""
    records = [
        {"layer": each["layer"], "conflicts": _rounded(each["conflicts"])}
        for each in found["layers"]
        if len(found["experts"]) > 1 and any(found["all"]["norms"])
    ]
    y = alt.Y("conflicts:Q", title="numbers in conflict", axis=alt.Axis(format="%"), scale=alt.Scale(domainMin=0))
    return Chart(
        "sign-conflicts-by-layer",
        "Sign conflicts",
        "Share of the numbers that one expert moves up and another one down, by layer.",
        records,
        as_spec(_single(found, y, ["layer:O", alt.Tooltip("conflicts:Q", format=".1%")]), records),
    )


def kept(found: Mapping[str, Any], labels: Sequence[str]) -> Chart:
    """Return lines of how much of each expert's change is in the merged model, by layer."""
    experts = list(labels)[: len(found["experts"])]
    records = [
        {"label": label, "layer": each["layer"], "kept": _rounded(share)}
        for each in found["layers"]
        if each["kept"]
        for label, share, norm in zip(experts, each["kept"], each["norms"], strict=False)
        if norm
    ]
    y = alt.Y("kept:Q", title="kept", axis=alt.Axis(format="%"))
    return Chart(
        "kept-by-layer",
        "What the merge kept of each expert",
        "Projection of the merged model's change on the expert's: 100 % where the merge went all of its way; more or "
        "less where others add to it or take from it.",
        records,
        as_spec(_lines(found, experts, y, []).properties(width=WIDTH, height=HEIGHT), records),
    )


def _lines(found: Mapping[str, Any], labels: Sequence[str], y: alt.Y, extra: Sequence[str]) -> Any:
    look = looks(labels, {label: place for place, label in enumerate(labels)})
    base = alt.Chart().encode(x=_depth(found), y=y, color=look["color"])
    tips = ["label:N", "layer:O", *extra, alt.Tooltip(y.shorthand, format=".2%")]
    points = base.mark_point(filled=True, size=35, opacity=1).encode(shape=look["shape"], tooltip=tips)
    return alt.layer(base.mark_line(strokeWidth=2).encode(strokeDash=look["strokeDash"]), points)


def _single(found: Mapping[str, Any], y: alt.Y, tips: Sequence[Any]) -> Any:
    base = alt.Chart().encode(x=_depth(found), y=y, color=alt.value(COLOURS[0]))
    points = base.mark_point(filled=True, size=45, opacity=1).encode(tooltip=list(tips))
    return alt.layer(base.mark_line(strokeWidth=2), points).properties(width=WIDTH, height=220)


def _depth(found: Mapping[str, Any]) -> alt.X:
    order = [each["layer"] for each in found["layers"]]
    longest = max(map(len, order), default=0)
    axis = alt.Axis(labelOverlap=True, labelAngle=-45 if longest > 3 else 0)
    return alt.X("layer:O", title="layer", sort=order, axis=axis)


def _share(norm: float, measured: Mapping[str, Any]) -> float | None:
    """Return a norm over that of the base, or None where that is 0 or one of them is no number."""
    return _rounded(norm / measured["base_norm"]) if measured["base_norm"] else None


def _rounded(value: float) -> float | None:
    """Return `value` to six digits, which keeps the page small; None for NaN and infinities, which JSON lacks."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
