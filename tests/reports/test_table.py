from __future__ import annotations

import io

import pytest
from reports.made_up import comparison, result
from rich.console import Console

from lifelong.reports import print_table
from lifelong.reports.columns import human_bytes


def printed(results, **settings):
    text = io.StringIO()
    print_table(results, Console(file=text, color_system=None, **settings))
    return text.getvalue()


def test_a_log_gets_one_plain_line_a_method():
    lines = printed(comparison(), width=80).splitlines()
    assert lines[0] == "permuted digits, domain-incremental: 5 tasks, accuracies in % ± half a 95 % interval"
    assert lines[1].split()[:5] == ["Method", "Accuracy", "New", "Old", "Forget"]
    assert len(lines) == 2 + 10
    assert "─" not in "".join(lines)


def test_what_a_line_says():
    run = result(
        "naive",
        average_accuracy=0.8123,
        new_accuracy=0.97,
        old_accuracy=None,
        forgetting=-0.004,
        seconds={"train": 12.0, "consolidate": 0.34, "evaluate": 1.0, "total": 13.34},
        predict_samples_per_second=41_234.0,
        memory={"model_bytes": 1, "method_bytes": 1_234_567, "stored_samples": 0, "peak_rss_bytes": 1},
    )
    line = printed([run]).splitlines()[2]
    assert " ".join(line.split()) == "naive 81.2 97.0 - -0.4 12.3 1.00 41.2k 1.2 MB no no 1"


def test_time_is_compared_with_naive_only_where_it_ran():
    assert "naive" not in printed([result("ewc")])
    slow = {"train": 20.0, "consolidate": 0.0, "evaluate": 0.0, "total": 20.0}
    fast = {"train": 8.0, "consolidate": 0.0, "evaluate": 0.0, "total": 8.0}
    assert " 2.50 " in printed([result("plain", method="naive", seconds=fast), result("ewc", seconds=slow)])


def test_seeds_that_did_not_finish_show():
    results = [result("ewc", 0), result("ewc", 1), result("si", 1)]
    assert printed(results).splitlines()[-1].endswith(" 1/2")


def test_what_is_reached_of_the_experts_is_told_only_where_something_is_merged():
    assert "exp." not in printed([result("ewc")])
    text = printed(
        [result("ewc"), result("magmax", merging={"normalised_accuracy": 0.876})], width=80, force_terminal=True
    )
    assert "exp." in text
    assert " 87.6 " in text
    assert max(len(line) for line in text.splitlines()[1:]) <= 80


def test_accuracy_on_what_is_never_learned_is_told_only_where_something_was_held_out():
    assert "Unseen" not in printed([result("ewc", unseen_accuracy=None)])
    held_out = result("magmax", unseen_accuracy=0.654, unseen_transfer=0.154)
    lines = printed([result("ewc", unseen_accuracy=None), held_out]).splitlines()
    assert lines[1].split()[:7] == ["Method", "Accuracy", "New", "Old", "Forget", "Unseen", "Gain"]
    assert [line.split()[5:7] for line in lines[2:]] == [["-", "-"], ["65.4", "15.4"]]


def test_expected_ranges_are_judged_only_where_given():
    assert "range" not in printed([result()])
    text = printed([result(average_accuracy=0.5, expected={"average_accuracy": [0.9, 1.0]})])
    assert "In range" in text
    assert "ewc: average_accuracy is 0.5, expected 0.9 to 1" in text


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_loses_no_column(width):
    text = printed(comparison(expected={"average_accuracy": [0.0, 1.0]}), width=width, force_terminal=True)
    for heading in ("Accuracy", "Forget", "naive", "Pred/s", "Memory", "Seeds", "range"):
        assert heading in text
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()[1:]) <= width


def test_a_label_is_no_markup():
    assert "[red]ewc[/red]" in printed([result("[red]ewc[/red]")])


def test_each_experiment_has_its_table():
    text = printed([result(experiment="task"), result(experiment="class")])
    assert "task: 5 tasks" in text
    assert "class: 5 tasks" in text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_700, "1.0 MB"), (2e15, "2000.0 TB")],
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text


def test_rows_are_compared_with_one_of_them_seed_by_seed():
    shares = {"si": (0.5, 0.6), "ewc": (0.52, 0.64), "l2": (0.5,)}
    results = [
        result(label, seed, average_accuracy=share)
        for label, per_seed in shares.items()
        for seed, share in enumerate(per_seed)
    ]
    assert "Against" not in printed(results)
    text = io.StringIO()
    print_table(results, Console(file=text, color_system=None), "si")
    heading, *rows = (" ".join(line.split()) for line in text.getvalue().splitlines()[1:])
    assert "Forget Against si Train" in heading
    # 12.7062 is Student's t for two seeds, whose differences of 2 and 4 points have a standard error of 1.
    assert [row.split()[5] for row in rows] == ["-", "+3.0±12.7", "0.0"]
