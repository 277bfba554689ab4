from __future__ import annotations

import json

import pytest
from reports.made_up import METHODS, comparison, result

from lifelong.reports import learning_charts as charts
from lifelong.reports.summary import sections

PLACES = {label: place for place, label in enumerate(METHODS)}


def test_every_chart_can_be_drawn_without_a_browser():
    (section,) = sections(comparison(2))
    made = charts.all_charts(section, PLACES)
    assert [chart.name for chart in made] == [
        "average-accuracy",
        "accuracy-matrices",
        "stability-plasticity",
        "accuracy-cost",
    ]
    for chart in made:
        drawn = chart.drawn()
        assert drawn["png"].startswith(b"\x89PNG")
        assert drawn["pdf"].startswith(b"%PDF")
        assert b"online-ewc" in drawn["svg"]


def test_one_seed_draws_no_band_and_no_nan():
    (section,) = sections(comparison(1))
    chart = charts.average_accuracy(section, PLACES)
    assert {record["low"] for record in chart.records} == {None}
    assert "NaN" not in json.dumps(chart.spec)


def test_one_task_has_nothing_old_to_show():
    (section,) = sections([result(tasks=1)])
    names = [chart.name for chart in charts.all_charts(section, PLACES)]
    assert names == ["average-accuracy", "accuracy-matrices", "accuracy-cost"]


def test_no_two_of_thirty_methods_look_the_same_as_lines():
    results = [result(f"method {number}") for number in range(28)]
    (section,) = sections(results)
    spec = charts.average_accuracy(section, {f"method {number}": number for number in range(28)}).spec
    line = spec["layer"][-2]["encoding"]
    colours, dashes = line["color"]["scale"]["range"], line["strokeDash"]["scale"]["range"]
    assert len({(colour, tuple(dash)) for colour, dash in zip(colours, dashes, strict=True)}) == 28


def test_a_method_looks_the_same_in_every_section():
    (whole,), (part,) = sections(comparison(1)), sections([result("replay"), result("si")])
    looks = [
        dict(zip(scale["domain"], scale["range"], strict=True))
        for section in (whole, part)
        for scale in [charts.average_accuracy(section, PLACES).spec["layer"][-2]["encoding"]["color"]["scale"]]
    ]
    assert looks[1] == {label: looks[0][label] for label in ("replay", "si")}


def test_names_of_points_at_one_place_are_moved_apart():
    same = [result(label, old_accuracy=0.9, new_accuracy=0.95) for label in ("ewc", "si", "mas")]
    (section,) = sections(same)
    values = charts.stability_plasticity(section, PLACES).spec["data"]["values"]
    assert sorted(value["dy"] for value in values) == [0, 12, 24]


@pytest.mark.parametrize(("seconds", "kind"), [(500.0, "log"), (20.0, None)])
def test_the_time_axis_is_logarithmic_when_times_differ_tenfold(seconds, kind):
    slow = {"train": seconds, "consolidate": 0.0, "evaluate": 0.0, "total": seconds}
    (section,) = sections([result("naive"), result("joint", seconds=slow)])
    spec = charts.accuracy_cost(section, PLACES).spec
    assert spec["layer"][0]["encoding"]["x"]["scale"].get("type") == kind


def test_methods_that_merge_show_how_far_tasks_conflict():
    conflicts = [{"trunk.1": [0.1, 0.3], "trunk.3": [0.5, 0.7]}, {"trunk.1": [0.3, 0.3], "trunk.3": [0.5, 0.9]}]
    merged = [result("magmax", seed, merging={"sign_conflict": each}) for seed, each in enumerate(conflicts)]
    (section,) = sections([*merged, result("naive"), result("naive", 1)])
    chart = charts.all_charts(section, {**PLACES, "magmax": len(PLACES)})[-1]
    assert chart.name == "sign-conflict"
    assert {record["label"] for record in chart.records} == {"magmax"}
    found = {(record["layer"], record["task"]): record["conflict"] for record in chart.records}
    assert found == {("trunk.1", 2): 0.2, ("trunk.1", 3): 0.3, ("trunk.3", 2): 0.5, ("trunk.3", 3): 0.8}
    assert chart.drawn()["png"].startswith(b"\x89PNG")
