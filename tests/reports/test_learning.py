from __future__ import annotations

import base64
import csv
import dataclasses
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from reports.made_up import comparison, result

from lifelong.errors import InputError
from lifelong.reports import learning, write_report
from lifelong.reports.summary import sections

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


def test_the_page_loads_nothing(tmp_path):
    text = write_report(comparison(1), tmp_path / "report.html").read_text()
    assert not re.findall(r"(?:src|href|action|poster)\s*=\s*[\"']?\s*(?:https?:)?//", text)
    assert not re.findall(r"@import|url\(\s*[\"']?(?:https?:)?//", text)
    assert '<link rel="stylesheet"' not in text
    assert "default-src 'none'" in text


def test_charts_lie_beside_the_page_and_are_linked(tmp_path):
    out = write_report(comparison(2), tmp_path / "new" / "report.html")
    addresses = re.findall(r'<a href="(report/[^"]+)">', out.read_text())
    assert len(addresses) == 4 * 4
    assert {out.parent / address for address in addresses} == set((out.parent / "report").iterdir())
    assert "report/average-accuracy.png" in addresses


def test_the_page_holds_the_data_of_its_charts(tmp_path):
    out = write_report(comparison(2), tmp_path / "report.html")
    found = re.search(
        r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="average-accuracy.csv"', out.read_text()
    )
    assert found is not None
    table = base64.b64decode(found[1]).decode()
    assert table == (tmp_path / "report" / "average-accuracy.csv").read_text()
    assert len(list(csv.DictReader(io.StringIO(table)))) == 10 * 5


def test_names_from_users_are_text(tmp_path):
    results = [result(NASTY, seed, data=NASTY, experiment=NASTY, tasks=2) for seed in range(2)]
    text = write_report(results, tmp_path / "report.html").read_text()
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.lower().count("</script>") == 3


def test_experiments_have_sections_and_files_of_their_own(tmp_path):
    results = [result(experiment=name) for name in ("a/b", "../a b")]
    out = write_report(results, tmp_path / "report.html")
    assert out.read_text().count('<h2 id="part-') == 2
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"1-a-b-average-accuracy.png", "2-a-b-average-accuracy.png"} <= names
    assert len(names) == 2 * 4 * 4


def test_what_was_not_measured_is_a_dash_and_never_nan(tmp_path):
    text = write_report([result(tasks=1, needs_old_data=None)], tmp_path / "report.html").read_text()
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    assert '<td data-value="">-</td>' in body
    assert "nan" not in body.lower()
    assert "±" not in body


def test_a_crash_leaves_the_old_page_and_no_half_one(tmp_path, monkeypatch):
    out = tmp_path / "report.html"
    out.write_text("old")
    whole = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith(".report.html"):
            whole(path, content[:10])
            raise OSError(28, "No space left on device")
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_report([result()], out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "report.html"]


def test_a_page_needs_an_ending(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.html, and this is .*report"):
        write_report([result()], tmp_path / "report")


def test_the_recipe_on_the_page_makes_the_runs_again():
    # Imported here: nothing else of the reports needs the code that runs experiments.
    from lifelong.experiments import plan as plans
    from lifelong.experiments import recipe as recipes

    values = {
        "stream": "permuted-digits",
        "epochs": 3,
        "seeds": [0, 2],
        "methods": {
            "naive": {},
            "ewc": {"strength": 30.0, "expected": {"average_accuracy": [0.1, 0.9]}},
            "fast": {"method": "ewc", "lr": 0.01},
        },
    }
    planned = plans.plan(values)
    results = [
        result(
            run.label,
            run.recipe.seed,
            method=run.recipe.method,
            recipe=recipes.record(run.recipe),
            expected=None if run.expected is None else {key: list(ends) for key, ends in run.expected.items()},
        )
        for run in planned
    ]
    (section,) = sections(results)
    again = plans.plan(yaml.safe_load(learning.recipe(section)))
    assert [recipes.record(run.recipe) for run in again] == [recipes.record(run.recipe) for run in planned]
    assert [dataclasses.replace(run, recipe=None) for run in again] == [
        dataclasses.replace(run, recipe=None) for run in planned
    ]


def test_importing_reports_costs_no_torch_and_no_drawing_library():
    code = "import sys, lifelong.reports; print(sorted({'torch', 'altair', 'vl_convert'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
