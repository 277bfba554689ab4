"""The charts of continual learning, one function each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import altair as alt

from lifelong.reports.chart import COLOURS, HEIGHT, WIDTH, Chart, Places, Records, as_spec, looks, loose
from lifelong.reports.summary import Section, as_columns

_SIZES = (60, 900)  # of points, in square pixels


def all_charts(section: Section, places: Places) -> list[Chart]:
    """Return the charts of a section, leaving out those that have nothing to show.

    Args:
        places: each label's place among all of the report, so that it looks the same in every section.
    """
    made = (average_accuracy, accuracy_matrices, stability_plasticity, accuracy_cost, sign_conflict)
    return [chart for function in made if (chart := function(section, places)).records]


def average_accuracy(section: Section, places: Places) -> Chart:
    """Return the lines of average accuracy after each task, with confidence bands."""
    records = [
        {"label": row.label, "task": task, **as_columns(found)}
        for row in section.rows
        for task, found in enumerate(row.average_after(), 1)
    ]
    ends = [record["high"] for record in records if record["high"] is not None]
    # An interval of few seeds may reach beyond what an accuracy can be, and the axis should not.
    scale = alt.Scale(zero=False, domainMax=1) if max(ends, default=0) > 1 else alt.Scale(zero=False)
    low, mean = (
        alt.Y(f"{name}:Q", title="average accuracy", axis=alt.Axis(format="%"), scale=scale) for name in ("low", "mean")
    )
    look = looks(section.labels, places)
    axis = alt.Axis(labelAngle=0, labelOverlap=True)
    base = alt.Chart().encode(x=alt.X("task:O", title="tasks learned", axis=axis), color=look["color"])
    band = base.mark_area(opacity=0.15, clip=True).encode(y=low, y2="high:Q")
    line = base.mark_line(strokeWidth=2).encode(y=mean, strokeDash=look["strokeDash"])
    tips = _tooltips("mean", "low", "high", extra=["task:O", "seeds:Q"])
    points = base.mark_point(filled=True, size=55, opacity=1).encode(y=mean, shape=look["shape"], tooltip=tips)
    layers = [band.transform_filter("isValid(datum.low)")] if ends else []
    return Chart(
        "average-accuracy",
        "Average accuracy after each task",
        "A line a method: mean accuracy on the tasks learned so far, each task counting the same; bands are "
        "95 % intervals over seeds.",
        records,
        as_spec(alt.layer(*layers, line, points).properties(width=WIDTH, height=HEIGHT), records),
    )


def accuracy_matrices(section: Section, _: Places) -> Chart:
    """Return a heat map a method: accuracy on each task after each task."""
    records = [
        {"label": row.label, "after": after, "task": task, "accuracy": round(found.mean, 4)}
        for row in section.rows
        for after, cells in enumerate(row.accuracy())
        for task, found in enumerate(cells, 1)
    ]
    axis = alt.Axis(labelOverlap=True, labelAngle=0, labelExpr="datum.value == 0 ? 'before' : datum.value")
    base = alt.Chart().encode(
        x=alt.X("task:O", title="accuracy on task", axis=axis),
        y=alt.Y("after:O", title="after task", axis=axis),
    )
    legend = alt.Legend(format="%", orient="bottom", direction="horizontal", values=[0, 0.25, 0.5, 0.75, 1])
    colour = alt.Color("accuracy:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=legend)
    layers = [base.mark_rect().encode(color=colour, tooltip=_tooltips("accuracy", extra=["after:O", "task:O"]))]
    if max(len(row.results[0]["tasks"]) for row in section.rows) <= 6:  # more numbers would not fit into their cells
        contrast = alt.condition("datum.accuracy > 0.6", alt.value("black"), alt.value("white"))
        layers.append(base.mark_text(fontSize=10).encode(text=alt.Text("accuracy:Q", format=".0%"), color=contrast))
    facet = alt.Facet("label:N", title=None, sort=[row.label for row in section.rows])
    cell = alt.layer(*layers).properties(width=200, height=200)
    # Shared axes would be drawn below the empty places of the last line too.
    chart = cell.facet(facet, data=alt.InlineData([]), columns=3).resolve_axis(x="independent")
    return Chart(
        "accuracy-matrices",
        "Accuracy on every task after every task",
        "A map a method, means over seeds. Down a column, a task's accuracy from before any learning to the "
        "end: what darkens below the diagonal was forgotten.",
        records,
        as_spec(chart, records),
    )


def stability_plasticity(section: Section, places: Places) -> Chart:
    """Return a point a method: what it keeps of the old against how well it learns the new."""
    records = [
        {"label": row.label, **_named("old", old), **_named("new", new)}
        for row in section.rows
        if (old := row.estimate("old_accuracy")) and (new := row.estimate("new_accuracy"))
    ]
    chart = _scatter(
        looks(section.labels, places),
        x=alt.X("new:Q", title="plasticity: on the new task", axis=alt.Axis(format="%"), scale=loose()),
        y=alt.Y("old:Q", title="stability: on old tasks at the end", axis=alt.Axis(format="%"), scale=loose()),
        size=alt.value(110),
        tooltip=_tooltips("new", "new_low", "new_high", "old", "old_low", "old_high"),
    )
    return Chart(
        "stability-plasticity",
        "Stability against plasticity",
        "Final accuracy on all tasks but the last, against that on a task right after learning it; best is "
        "at the upper right.",
        records,
        as_spec(chart, _dodged(records, "new", "old")),
    )


def accuracy_cost(section: Section, places: Places) -> Chart:
    """Return a point a method: accuracy against training time, as large as the memory that it keeps."""
    records = [
        {
            "label": row.label,
            **_named("accuracy", end),
            **_named("seconds", time),
            "megabytes": kept.mean / 1e6,
        }
        for row in section.rows
        if (end := row.estimate("average_accuracy"))
        and (time := row.estimate("training_seconds"))
        and (kept := row.estimate("memory.method_bytes"))
    ]
    times = [record["seconds"] for record in records] or [0]
    log = 0 < 10 * min(times) < max(times)  # joint training can take many times as long as the others
    scale = alt.Scale(type="log", padding=20) if log else loose()
    legend = alt.Legend(orient="bottom", symbolType="circle", symbolFillColor=COLOURS[-1], tickCount=3)
    chart = _scatter(
        looks(section.labels, places),
        x=alt.X("seconds:Q", title="training time, seconds", axis=alt.Axis(format="~g"), scale=scale),
        y=alt.Y("accuracy:Q", title="average accuracy at the end", axis=alt.Axis(format="%"), scale=loose()),
        size=alt.Size("megabytes:Q", title="memory, MB", scale=alt.Scale(range=_SIZES), legend=legend),
        tooltip=[*_tooltips("accuracy", "accuracy_low", "accuracy_high"), "seconds:Q", "megabytes:Q"],
    )
    return Chart(
        "accuracy-cost",
        "Accuracy against cost",
        "Average accuracy at the end against training time; larger points are methods that keep more memory.",
        records,
        as_spec(chart, _dodged(records, "seconds", "accuracy", log=log)),
    )


def sign_conflict(section: Section, _: Places) -> Chart:
    """Return a heat map for each method that merges: how much of each layer a task moved against the merge so far."""
    records = [
        {"label": row.label, "layer": layer, "task": task, "conflict": round(fmean(shares), 4)}
        for row in section.rows
        if (found := [result["merging"]["sign_conflict"] for result in row.results if result.get("merging")])
        for layer in found[0]
        for task, shares in enumerate(zip(*(each[layer] for each in found), strict=True), 2)
    ]
    legend = alt.Legend(format="%", orient="bottom", direction="horizontal")
    chart = (
        alt.Chart(alt.InlineData([]))
        .mark_rect()
        .encode(
            x=alt.X("task:O", title="task", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("layer:N", title=None, sort=None),
            color=alt.Color("conflict:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=legend),
            tooltip=_tooltips("conflict", extra=["layer:N", "task:O"]),
            facet=alt.Facet("label:N", title=None, columns=3, sort=[row.label for row in section.rows]),
        )
        .properties(width=200)
    )
    return Chart(
        "sign-conflict",
        "Conflict with the merge, layer by layer",
        "A map for each method that merges, means over seeds: of the numbers that a task and the merge of those before "
        "it have both moved, the share that they moved in opposite directions.",
        records,
        as_spec(chart, records),
    )


def _scatter(look: Mapping[str, Any], *, x: alt.X, y: alt.Y, **encodings: Any) -> Any:
    base = alt.Chart().encode(x=x, y=y)
    points = base.mark_point(filled=True, opacity=0.85)
    align = alt.expr("datum.dx < 0 ? 'right' : 'left'")
    names = base.mark_text(align=align, dx=alt.expr("datum.dx"), dy=alt.expr("datum.dy"), fontSize=12)
    return alt.layer(
        points.encode(color=look["color"], shape=look["shape"], **encodings), names.encode(text="label:N")
    ).properties(width=WIDTH, height=HEIGHT)


def _dodged(records: Records, x: str, y: str, *, log: bool = False) -> Records:
    """Return `records` with `dx` and `dy`, which put each name beside its point, below others in its way."""
    across = _pixels([math.log(each[x]) if log else each[x] for each in records], WIDTH / 2)  # as on a phone
    down = _pixels([-each[y] for each in records], HEIGHT)
    largest = max((each.get("megabytes", 0) for each in records), default=0) or 1
    placed: list[tuple[float, float, float]] = []  # height from the top, left and right end of names
    moved = []
    for point, top, record in sorted(zip(across, down, records, strict=True), key=lambda each: each[1]):
        # Names of points on the far right stand to their left, or a narrow chart would cut them off.
        side = -1 if point > 0.35 * WIDTH else 1
        left, right = sorted((point, point + side * 7 * len(record["label"])))
        height = top
        for other, other_left, other_right in sorted(placed):
            if left < other_right and other_left < right and abs(height - other) < 12:
                height = other + 12
        placed.append((height, left, right))
        size = _SIZES[0] + (_SIZES[1] - _SIZES[0]) * record.get("megabytes", 0) / largest
        moved.append({**record, "dx": side * round(6 + math.sqrt(size) / 2), "dy": round(height - top)})
    return moved


def _pixels(values: list[float], length: float) -> list[float]:
    low, high = min(values, default=0), max(values, default=0)
    return [length * (value - low) / ((high - low) or 1) for value in values]


def _named(name: str, found: Any) -> dict[str, Any]:
    numbers = as_columns(found)
    return {name: numbers["mean"], f"{name}_low": numbers["low"], f"{name}_high": numbers["high"]}


def _tooltips(*shares: str, extra: Sequence[str] = ()) -> list[Any]:
    return ["label:N", *extra, *(alt.Tooltip(f"{share}:Q", format=".1%") for share in shares)]
