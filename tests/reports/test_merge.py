"""The page of a merge: what is on it, and what its charts show."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re

import pytest
from reports.made_up import merge

from lifelong.errors import InputError
from lifelong.reports import write_merge_report
from lifelong.reports.merge import short
from lifelong.reports.merge_charts import all_charts

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"
LABELS = ["a", "b", "out (merged)"]


def test_the_page_has_models_charts_and_every_tensor(tmp_path):
    found = merge()
    out = write_merge_report(found, tmp_path / "report.html")
    text = out.read_text()
    assert "<h1>Merge of expert-0, expert-1</h1>" in text
    for each in found["models"]:
        assert f'<th scope="row">{each["name"]}</th>' in text
        assert each["fingerprint"] in text
    share = found["all"]["kept"][1]
    assert f'<td data-value="{share}">{share:.1%}</td>' in text
    assert "merge_method: ties" in text
    names = ("change-by-layer", "cosines", "least-cosine-by-layer", "sign-conflicts-by-layer", "kept-by-layer")
    kinds = ("csv", "pdf", "png", "svg")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {f"{n}.{k}" for n in names for k in kinds}
    assert set(re.findall(r'data-chart="([^"]+)"', text)) == set(names)
    assert b"expert-1" in (tmp_path / "report" / "kept-by-layer.svg").read_bytes()
    rows = table(text, "tensors.csv")
    assert [row["tensor"] for row in rows] == [each["name"] for each in found["tensors"]]
    assert [float(row["kept of expert-1"]) for row in rows] == [each["kept"][1] for each in found["tensors"]]
    assert float(rows[0]["cosine of expert-0 and out (merged)"]) == found["tensors"][0]["cosines"][0][2]


def table(text, name):
    data = re.search(rf'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="{name}"', text)[1]
    return list(csv.DictReader(io.StringIO(base64.b64decode(data).decode())))


def test_models_that_are_only_compared_have_no_recipe_and_nothing_kept(tmp_path, undrawn):
    found = merge(merged=None, recipe=None, base=False)
    for each in (found["all"], *found["layers"], *found["kinds"], *found["tensors"]):
        each.update(norms=each["norms"][:2], kept=())
    found["models"] = [{**each, "fingerprint": None} for each in found["models"][1:3]]
    text = write_merge_report(found, tmp_path / "page.html").read_text()
    assert "<h1>Comparison of expert-0, expert-1</h1>" in text
    assert "the mean of the models" in text
    for word in ("Fingerprint", "Kept", "kept-by-layer", "Recipe"):
        assert word not in text


def test_scores_are_shown_with_their_share_of_the_best(tmp_path, undrawn):
    found = merge(scores={"merged": {"films": 0.75}}, normalised={"merged": {"films": 0.9}})
    assert '<td data-value="0.75">0.75 (90.0%)</td>' in write_merge_report(found, tmp_path / "page.html").read_text()


def test_names_from_users_are_text(tmp_path, undrawn):
    found = {**merge(recipe=NASTY), "experts": [NASTY, "b"]}
    text = write_merge_report(found, tmp_path / "page.html").read_text()
    assert "<script>alert" not in text
    assert "<img src=x" not in text


def test_a_page_needs_an_ending(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.html"):
        write_merge_report(merge(), tmp_path / "page")


def test_charts_show_layers_in_the_order_of_the_network():
    found = merge(layers=11, experts=2)
    change, _, least, conflicts, kept = all_charts({**found, "experts": LABELS[:2]}, LABELS)
    order = ["embed", *map(str, range(11))]
    for chart in (least, conflicts):
        assert [record["layer"] for record in chart.records] == order
        assert chart.spec["layer"][0]["encoding"]["x"]["sort"] == order
    assert len(kept.records) == 2 * 12
    assert {record["label"] for record in kept.records} == {"a", "b"}
    assert {record["kind"] for record in change.records} == {"attn", "mlp", "outside the layers"}
    first = next(record for record in change.records if record["label"] == "b" and record["layer"] == "3")
    kind = next(each for each in found["kinds"] if each["layer"] == "3" and each["kind"] == first["kind"])
    assert first["change"] == pytest.approx(kind["norms"][1] / 8.0, rel=1e-5)


def test_the_least_cosine_names_its_pair():
    found = merge(experts=3, layers=1)
    for each in found["layers"]:
        each["cosines"] = [[1, 0.5, -0.25, 0], [0.5, 1, 0.1, 0], [-0.25, 0.1, 1, 0], [0, 0, 0, 1]]
    least = all_charts({**found, "experts": ["a", "b", "c"]}, ["a", "b", "c", "m"])[2]
    assert least.records[0] == {"layer": "embed", "cosine": -0.25, "between": "a, c"}


def test_what_is_not_a_number_is_left_out():
    found = merge()
    for each in (found["all"], *found["layers"], *found["kinds"]):
        each["norms"][0] = math.nan
        each["cosines"][1][0] = math.inf
        each["kept"][0] = math.nan
    for chart in all_charts({**found, "experts": LABELS[:2]}, LABELS):
        assert "NaN" not in json.dumps(chart.spec)
        assert "Infinity" not in json.dumps(chart.spec)


def test_where_nothing_changed_there_is_nothing_to_show():
    found = merge()
    for each in (found["all"], *found["layers"], *found["kinds"]):
        each["norms"] = [0.0, 0.0, 0.0]
    assert [chart.records for chart in all_charts({**found, "experts": LABELS[:2]}, LABELS)] == [[]] * 5


def test_names_lose_the_folders_that_they_share():
    assert short(["x/y/a", "x/y/b/c"]) == ["a", "b/c"]
    assert short(["/x/a", "/z/a"]) == ["x/a", "z/a"]
    assert short(["x/a"]) == ["a"]
