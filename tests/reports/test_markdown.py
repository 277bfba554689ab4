from __future__ import annotations

from reports.made_up import comparison, result

from lifelong import cli
from lifelong.reports import write_markdown


def test_a_table_an_experiment_with_a_row_a_method(tmp_path):
    out = write_markdown(comparison(), tmp_path / "page.md")
    lines = out.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + 10
    assert rows[0].startswith("| Method | Average accuracy at the end, %")
    assert len({row.count("|") for row in rows}) == 1


def test_a_label_cannot_break_the_table(tmp_path):
    text = write_markdown([result("a|b", method="naive")], tmp_path / "page.md").read_text()
    assert "| a\\|b |" in text


def test_the_command_writes_markdown_where_the_name_says_so(tmp_path, capsys):
    import json

    (tmp_path / "results.json").write_text(json.dumps(comparison()))
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "page.md")]) == 0
    assert capsys.readouterr().out.endswith("page.md\n")
    assert "| ewc |" in (tmp_path / "page.md").read_text()
    assert not (tmp_path / "page").exists()
    assert cli.main(["report", str(tmp_path), "--against", "si", "-o", str(tmp_path / "page.md")]) == 0
    assert "| Against si, points |" in (tmp_path / "page.md").read_text()
    assert cli.main(["report", str(tmp_path), "--against", "is", "-o", str(tmp_path / "page.md")]) == 2
    assert "unknown row 'is': known are ewc, joint" in capsys.readouterr().err
