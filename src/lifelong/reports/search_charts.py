"""The charts of a search over merges, one function each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from lifelong.reports.chart import COLOURS, HEIGHT, WIDTH, Chart, as_spec, loose

# Of a panel where a chart has several.
_PANEL = 260


def all_charts(found: Mapping[str, Any]) -> list[Chart]:
    """Return the charts of a search, as `write_search_report` takes it; some may have nothing to show."""
    return [function(found) for function in (over_trials, of_unknowns, front)]


def over_trials(found: Mapping[str, Any]) -> Chart:
    """Return each score of each trial, and the best one so far."""
    better = min if found["minimize"] else max
    records, panels = [], []
    for score in _scores(found):
        best = None
        for each in found["trials"]:
            value = each["scores"][score]
            best = value if best is None else better(best, value)
            records.append(
                {"trial": each["number"], "score": score, "value": value, "best so far": best, **_kept(found, each)}
            )
        x = alt.X("trial:Q", title="trial", axis=alt.Axis(tickMinStep=1, format="d"), scale=loose())
        y = alt.Y("value:Q", title=score, scale=loose())
        base = alt.Chart().transform_filter(alt.datum.score == score).encode(x=x)
        line = base.mark_line(interpolate="step-after", color=COLOURS[-1]).encode(y=alt.Y("best so far:Q", title=score))
        panels.append(alt.layer(line, _points(base.encode(y=y), ["trial:Q", "value:Q"])))
    return Chart(
        "scores-over-trials",
        "Scores over trials",
        "A point for each merge that was tried; the line is the best score so far.",
        records,
        as_spec(_side_by_side(panels), records),
    )


def of_unknowns(found: Mapping[str, Any]) -> Chart:
    """Return each score against each value that was searched for."""
    records = [
        {
            "trial": each["number"],
            "unknown": unknown["name"],
            "found": _spelled(each["values"][unknown["name"]], unknown),
            "score": score,
            "value": value,
            **_kept(found, each),
        }
        for unknown in found["unknowns"]
        for score in _scores(found)
        for each in found["trials"]
        for value in [each["scores"][score]]
    ]
    panels = []
    for unknown, score in itertools.product(found["unknowns"], _scores(found)):
        if unknown["choices"]:
            x = alt.X("found:N", title=unknown["name"], axis=alt.Axis(labelAngle=-45))
        else:
            scale = alt.Scale(type="log", nice=False, padding=20) if unknown["log"] else loose()
            x = alt.X("found:Q", title=unknown["name"], scale=scale)
        base = alt.Chart().transform_filter((alt.datum.unknown == unknown["name"]) & (alt.datum.score == score))
        y = alt.Y("value:Q", title=score, scale=loose())
        panels.append(_points(base.encode(x=x, y=y), ["trial:Q", "found:N", "value:Q"]))
    return Chart(
        "scores-of-unknowns",
        "Scores of what was searched for",
        "Each score against each unknown of the recipe; the others differ too from point to point.",
        records,
        as_spec(_side_by_side(panels), records) if panels else {},
    )


def front(found: Mapping[str, Any]) -> Chart:
    """Return, for every two scores, the trials as points, those marked that none beats in all scores."""
    names = _scores(found)
    records = [
        {"trial": each["number"], **each["scores"], **_kept(found, each)} for each in found["trials"] if len(names) > 1
    ]
    panels = []
    for one, other in itertools.combinations(names, 2):
        # Brackets and dots in a name would be read as a path.
        x = alt.X(field=_escaped(one), type="quantitative", title=one, scale=loose())
        y = alt.Y(field=_escaped(other), type="quantitative", title=other, scale=loose())
        base = alt.Chart().encode(x=x, y=y)
        names_of = base.transform_filter("datum.kept == 'kept'").mark_text(dx=8, align="left").encode(text="trial:N")
        panels.append(alt.layer(_points(base, ["trial:Q"]), names_of))
    return Chart(
        "front",
        "The front",
        "A point for each merge; none beats those that are kept in all scores at once. Numbers are those of trials.",
        records,
        as_spec(_side_by_side(panels), records) if panels else {},
    )


def _points(base: Any, tips: Sequence[str]) -> Any:
    domain = ["kept", "tried"]
    colour = alt.Color("kept:N", title=None, scale=alt.Scale(domain=domain, range=[COLOURS[1], COLOURS[0]]))
    shape = alt.Shape("kept:N", title=None, scale=alt.Scale(domain=domain, range=["diamond", "circle"]))
    size = alt.condition("datum.kept == 'kept'", alt.value(120), alt.value(40))
    return base.mark_point(filled=True, opacity=0.85).encode(color=colour, shape=shape, size=size, tooltip=list(tips))


def _side_by_side(panels: Sequence[Any]) -> Any:
    """Return one chart of all panels; a single one as wide as the page."""
    if len(panels) == 1:
        return panels[0].properties(width=WIDTH, height=HEIGHT)
    return alt.concat(*(each.properties(width=_PANEL, height=_PANEL * 3 // 4) for each in panels), columns=2)


def _kept(found: Mapping[str, Any], trial: Mapping[str, Any]) -> dict[str, str]:
    return {"kept": "kept" if trial["number"] in found["front"] else "tried"}


def _scores(found: Mapping[str, Any]) -> list[str]:
    return list(found["trials"][0]["scores"])


def _spelled(value: Any, unknown: Mapping[str, Any]) -> Any:
    return json.dumps(value) if unknown["choices"] and not isinstance(value, str) else value


def _escaped(field: str) -> str:
    return "".join(f"\\{letter}" if letter in ".[]\\'\"" else letter for letter in field)
