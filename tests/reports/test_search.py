"""The page of a search over merges."""

from __future__ import annotations

import pytest
from reports.made_up import search

from lifelong.errors import InputError
from lifelong.reports import write_search_report
from lifelong.reports.search_charts import all_charts


def test_the_page_has_the_front_and_its_charts(tmp_path):
    text = write_search_report(search(), tmp_path / "report.html").read_text()
    assert "<h1>Search over merges: 8 trials</h1>" in text
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    assert body.count('<th scope="row">') == 2
    assert 'download="trials.csv"' in text
    names = {"scores-over-trials", "scores-of-unknowns", "front"}
    assert {path.stem for path in (tmp_path / "report").iterdir()} == names
    assert b"models.0.weight" in (tmp_path / "report" / "scores-of-unknowns.svg").read_bytes()
    with pytest.raises(InputError, match="no trials"):
        write_search_report(search(trials=0), tmp_path / "none.html")


@pytest.mark.parametrize(("minimize", "better"), [(False, max), (True, min)])
def test_the_line_is_the_best_so_far(minimize, better):
    found = search(scores=("score",), minimize=minimize)
    trials, _, front = all_charts(found)
    values = [each["scores"]["score"] for each in found["trials"]]
    best = [record["best so far"] for record in trials.records]
    assert best == [better(values[: i + 1]) for i in range(len(values))]
    assert [record["kept"] for record in trials.records].count("kept") == 2
    assert front.records == []


def test_every_unknown_has_a_panel_for_every_score():
    found = search()
    unknowns, front = all_charts(found)[1:]
    axes = [panel["encoding"]["x"] for panel in unknowns.spec["concat"]]
    assert [axis["type"] for axis in axes] == ["quantitative"] * 2 + ["nominal"] * 2
    assert axes[0]["scale"]["type"] == "log"
    assert len(unknowns.records) == 8 * 2 * 2
    assert "concat" not in front.spec
    assert len(all_charts(search(scores=("x", "y", "a.b")))[2].spec["concat"]) == 3
