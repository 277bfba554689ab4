"""The charts of meta-learning, one function each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from lifelong.reports.chart import HEIGHT, WIDTH, Chart, as_spec, looks

# What the training score is of where it is not of queries that adaptation has not seen.
_NO_QUERIES = {
    "reptile": " Reptile's adaptation has seen the queries.",
    "linear-probe": " linear-probe tells all training classes apart.",
    "fine-tuning": " fine-tuning tells all training classes apart.",
}


def all_charts(found: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return the charts of several meta-trainings; some may have nothing to show."""
    return [function(found) for function in (adaptation, learning, validation)]


def adaptation(found: Sequence[Mapping[str, Any]]) -> Chart:
    """Return lines of the test score after each step of adaptation, with 95 % intervals."""
    records = [
        {"label": each["name"], "step": step, "score": mean, **_ends(mean, half, each["measure"])}
        for each in found
        for step, (mean, half) in enumerate(zip(each["test"], each["interval"], strict=True))
    ]
    base = _base(found, alt.X("step:Q", title="steps of adaptation", axis=alt.Axis(tickMinStep=1)))
    low, y = (_height(found, name) for name in ("low", "score"))
    band = base.mark_area(opacity=0.15).encode(y=low, y2="high:Q")
    tips = ["label:N", "step:Q", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("score", "low", "high"))]
    points = base.mark_point(filled=True, size=45, opacity=1).encode(y=y, tooltip=tips)
    chart = alt.layer(band, base.mark_line(strokeWidth=2).encode(y=y), points).properties(width=WIDTH, height=HEIGHT)
    return Chart(
        "adaptation",
        "Adapting to new tasks",
        "Score after each step of adaptation; bands are 95 % intervals over tasks. Algorithms without an inner loop "
        "have a point.",
        records,
        as_spec(chart, records),
    )


def learning(found: Sequence[Mapping[str, Any]]) -> Chart:
    """Return lines of the training score over iterations."""
    records = [
        {"label": each["name"], "iteration": iteration, "score": score, "loss": loss}
        for each in found
        for iteration, loss, score in each["curve"]
    ]
    return _over_iterations(
        found,
        records,
        "learning",
        "Learning to learn",
        "Score on queries of training tasks after adaptation, means over some iterations each."
        + "".join(text for name, text in _NO_QUERIES.items() if name in {each["algorithm"] for each in found}),
    )


def validation(found: Sequence[Mapping[str, Any]]) -> Chart:
    """Return lines of the validation score over iterations."""
    records = [
        {"label": each["name"], "iteration": iteration, "score": scores[-1]}
        for each in found
        for iteration, scores, _ in each["validation"]
    ]
    return _over_iterations(
        found,
        records,
        "validation",
        "Validation tasks",
        "Score on the same tasks each time, none of which training sees; the best weights are kept.",
    )


def _ends(mean: float, half: float, measure: str) -> dict[str, float]:
    low, high = mean - half, mean + half
    return {"low": max(0.0, low), "high": min(1.0, high) if measure == "accuracy" else high}


def _over_iterations(
    found: Sequence[Mapping[str, Any]], records: list[dict[str, Any]], name: str, title: str, description: str
) -> Chart:
    base, y = _base(found, alt.X("iteration:Q", title="iterations")), _height(found, "score")
    tips = ["label:N", "iteration:Q", alt.Tooltip("score:Q", format=".4f")]
    chart = base.mark_line(strokeWidth=2).encode(y=y, tooltip=tips).properties(width=WIDTH, height=HEIGHT)
    return Chart(name, title, description, records, as_spec(chart, records))


def _base(found: Sequence[Mapping[str, Any]], x: alt.X) -> Any:
    labels = [str(each["name"]) for each in found]
    look = looks(labels, {label: place for place, label in enumerate(labels)})
    return alt.Chart().encode(x=x, color=look["color"], strokeDash=look["strokeDash"])


def _height(found: Sequence[Mapping[str, Any]], field: str) -> alt.Y:
    measures = " or ".join(dict.fromkeys(str(each["measure"]) for each in found))
    return alt.Y(f"{field}:Q", title=measures, scale=alt.Scale(zero=False))
