"""The page of meta-trainings: what it says of each, and over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lifelong.errors import InputError
from lifelong.reports import over_seeds, protocol, write_meta_report

RECIPE: dict[str, Any] = {
    "data": "omniglot",
    "ways": 5,
    "shots": 1,
    "queries": 1,
    "statistics": "transductive",
    "rotations": None,
    "train_ways": None,
}


def made_up(name: str, last: float, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "meta",
        "recipe": RECIPE,
        "algorithm": "maml",
        "data": "omniglot",
        "measure": "accuracy",
        "iterations": 20,
        "test": [0.2, last],
        "interval": [0.01, 0.02],
        "calibration": [0.5, 0.04],
        "test_tasks": 600,
        "seconds_per_task": 0.01,
        "curve": [[10, 1.0, 0.5], [20, 0.8, 0.6]],
        "validation": [[20, [0.2, 0.7], [0.01, 0.01]]],
        "seconds": 90.0,
        "tasks_per_second": 12.0,
        "memory": {"peak_rss_bytes": 2**29},
        **changes,
    }


def test_the_page_has_scores_with_intervals_and_charts(tmp_path: Path) -> None:
    page = write_meta_report([made_up("maml", 0.93)], tmp_path / "page.html").read_text()
    for said in ("93.00% ± 2.00%", "5-way 1-shot, 1 query, transductive", "0.040", "1.5", "Learning to learn"):
        assert said in page, said
    assert "Over seeds" not in page
    assert "Mean over test tasks of classes that training did not see" in page
    rows = (tmp_path / "page" / "adaptation.csv").read_text().splitlines()
    assert rows[0] == "label,step,score,low,high"
    assert rows[2].startswith("maml,1,0.93,0.91,")


def test_regression_has_errors_and_no_calibration(tmp_path: Path) -> None:
    recipe = {**RECIPE, "data": "sinusoids", "shots": 10, "queries": 10}
    found = made_up("maml", 0.125, measure="mean squared error", calibration=[], recipe=recipe)
    page = write_meta_report([found], tmp_path / "page.html").read_text()
    assert "0.1250 ± 0.0200" in page
    assert "12.50%" not in page
    assert "10-shot, 10 queries<" in page
    assert "Mean over test tasks of waves that training did not see" in page
    assert "classes" not in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "5-way 1-shot, 1 query, transductive"),
        ({"rotations": "none", "train_ways": 5}, "5-way 1-shot, 1 query, transductive"),
        ({"rotations": "all", "train_ways": 20}, "5-way 1-shot, 1 query, transductive, rotated, trained 20-way"),
        ({"rotations": "train"}, "5-way 1-shot, 1 query, transductive, rotated in training"),
        ({"ways": 2, "data": "a,b", "shots": 3, "statistics": "support"}, "domains, 3-shot, 1 query, support"),
        ({"data": "sinusoids", "shots": 10, "queries": 10}, "10-shot, 10 queries"),
        ({"data": "sinusoids", "shots": 5, "train_shots": 10, "queries": 5}, "5-shot, 5 queries, trained 10-shot"),
        ({"train_ways": 20, "train_shots": 9}, "5-way 1-shot, 1 query, transductive, trained 20-way 9-shot"),
    ],
)
def test_tasks_are_described_by_what_moves_the_score(changes: dict[str, Any], said: str) -> None:
    assert protocol({"recipe": {**RECIPE, **changes}}) == said


def test_statistics_of_a_network_without_batch_norm_are_not_told() -> None:
    assert protocol({"recipe": {**RECIPE, "evaluate_on": "validation"}, "batch_norm": False}) == (
        "5-way 1-shot, 1 query, validation tasks"
    )


def test_new_domains_are_no_new_classes(tmp_path: Path) -> None:
    found = [made_up("a", 0.5), made_up("b", 0.5, recipe={**RECIPE, "data": "a,b"})]
    page = write_meta_report(found, tmp_path / "page.html").read_text()
    assert "Mean over test tasks of classes or domains that training did not see" in page
    alone = write_meta_report(found[1:], tmp_path / "page.html").read_text()
    assert "Mean over test tasks of domains that training did not see" in alone


def test_the_page_has_the_split_and_every_recipe(tmp_path: Path) -> None:
    few = {"train": ["zero", "one"], "validation": [], "test": ["two", "three"]}
    many = {"train": [f"c{place}" for place in range(30)], "validation": ["v"], "test": ["t"]}
    found = [made_up("a", 0.5, classes=few), made_up("b", 0.5, classes=few), made_up("c", 1.0, classes=many)]
    page = write_meta_report(found, tmp_path / "page.html").read_text()
    assert page.count(">zero, one<") == 1  # once for both that share it
    assert ">30: c0, c1, " in page
    assert page.count('download="recipe.yaml"') == 3
    alone = write_meta_report(found[:2], tmp_path / "alone.html").read_text()
    assert '<th scope="row">all</th>' in alone
    rows = (tmp_path / "page" / "adaptation.csv").read_text().splitlines()
    assert rows[-1] == "c,1,1.0,0.98,1.0"  # no share is above one


def test_seeds_are_taken_together(tmp_path: Path) -> None:
    runs = [made_up(f"5-way/maml/seed-{seed}", last) for seed, last in enumerate((0.90, 0.92, 0.94))]
    found = over_seeds([*runs, made_up("5-way/anil/seed-0", 0.5)])
    assert [name for name, _ in found] == ["5-way/maml"]
    seeds, before, after = (text for text, _ in found[0][1])
    # Student's t of 4.303 for two degrees of freedom, times 0.02 / sqrt(3).
    assert (seeds, before, after) == ("3", "20.00% ± 0.00%", "92.00% ± 4.97%")
    assert "Over seeds" in write_meta_report(runs, tmp_path / "page.html").read_text()


def test_nothing_cannot_be_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results"):
        write_meta_report([], tmp_path / "page.html")
