from __future__ import annotations

import math

import pytest
from reports.made_up import comparison, result
from scipy import stats

from lifelong.errors import InputError
from lifelong.reports.summary import Estimate, Row, estimate, measures, sections


def test_interval_is_student_t_by_hand():
    # mean 2, deviation 1, three values: 4.302653 (t, 2 degrees, 97.5 %) * 1 / sqrt(3)
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found.seeds == 3
    # 12.7062 is the quantile for two values, whose standard error is half their distance
    pair = estimate([0.0, 1.0])
    assert pair is not None
    assert pair.half_width == pytest.approx(12.7062 * 0.5, rel=1e-5)


def test_one_seed_has_no_interval():
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    row = Row("ewc", (result(),))
    assert all(cell.half_width is None for line in row.accuracy() for cell in line)


def test_values_that_some_runs_lack():
    assert estimate([]) is None
    assert estimate([None, None]) is None
    assert estimate([None, 0.25]) == Estimate(0.25, None, 1)


def test_identical_runs_have_an_interval_of_nothing():
    assert estimate([0.5, 0.5]) == Estimate(0.5, 0.0, 2)


def test_rows_and_experiments_keep_the_order_of_results():
    results = [
        result("si", 1, experiment="task"),
        result("ewc", 0, experiment="task"),
        result("si", 0, experiment="task"),
        result("ewc", 0, experiment="class"),
    ]
    found = sections(results)
    assert [part.experiment for part in found] == ["task", "class"]
    assert [row.label for row in found[0].rows] == ["si", "ewc"]
    assert [each["seed"] for each in found[0].rows[0].results] == [1, 0]
    assert found[0].seeds == [0, 1]


def test_a_method_with_fewer_seeds_keeps_its_row():
    results = [result("ewc", seed) for seed in range(3)] + [result("si", 0)]
    (section,) = sections(results)
    counts = [row.estimate("average_accuracy") for row in section.rows]
    assert [found.seeds for found in counts if found] == [3, 1]


def test_training_time_counts_what_is_done_between_tasks():
    row = Row("ewc", (result(seconds={"train": 3.0, "consolidate": 0.5, "evaluate": 9.0, "total": 12.5}),))
    assert row.estimate("training_seconds") == Estimate(3.5, None, 1)


def test_average_after_each_task_is_over_the_tasks_seen():
    row = Row("ewc", (result(tasks=2, accuracy=[[0.1, 0.2], [0.9, 0.2], [0.7, 0.8]]),))
    assert [found.mean for found in row.average_after()] == [0.9, 0.75]


def test_expected_range_holds_the_mean_over_seeds():
    runs = tuple(
        result("ewc", seed, average_accuracy=value, expected={"average_accuracy": [0.8, 0.9]})
        for seed, value in enumerate([0.7, 0.95])
    )
    assert Row("ewc", runs).misses == []
    assert Row("ewc", runs[:1]).misses == ["average_accuracy is 0.7, expected 0.8 to 0.9"]
    lacking = result(old_accuracy=None, expected={"old_accuracy": [0.8, 0.9]})
    assert Row("ewc", (lacking,)).misses == ["old_accuracy is missing, expected 0.8 to 0.9"]


def test_a_flag_is_yes_when_any_run_says_so():
    runs = (result("ewc", 0), result("ewc", 1, needs_old_data=True))
    assert Row("ewc", runs).flag("needs_old_data") is True
    assert Row("ewc", runs).flag("needs_task_id") is False
    assert Row("ewc", runs).flag("not there") is None


def test_the_tidy_table_leaves_out_what_no_run_has():
    (section,) = sections(comparison(2))
    found = measures(section)
    assert {record["measure"] for record in found} >= {
        "average_accuracy",
        "memory.method_bytes",
        "seconds.train",
    }
    assert "intransigence" not in {record["measure"] for record in found}
    assert not any(isinstance(value, float) and math.isnan(value) for record in found for value in record.values())


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "no results to report"),
        ([{"seed": 0}], "result 1 has no 'method'"),
        ([result(), result()], "two results of 'ewc' have seed 0"),
        ([result(), result(seed=1, tasks=3)], "results of 'ewc' differ in their number of tasks"),
    ],
)
def test_results_that_make_no_report(results, message):
    with pytest.raises(InputError, match=message):
        sections(results)


def test_a_difference_is_that_of_the_paired_t_test():
    pairs = {0: (0.70, 0.65), 1: (0.90, 0.80), 2: (0.80, 0.79), 3: (0.60, 0.58)}
    others = [result("si", seed, average_accuracy=theirs) for seed, (_, theirs) in pairs.items()]
    ours = [result("ewc", seed, average_accuracy=own) for seed, (own, _) in reversed(pairs.items())]
    (section,) = sections([*others, *ours, result("ewc", 9, average_accuracy=0.1)], "si")
    assert section.reference == section.rows[0]
    found = section.rows[1].difference("average_accuracy", section.rows[0])
    expected = stats.ttest_rel(*zip(*pairs.values(), strict=True)).confidence_interval(0.95)
    assert found is not None
    assert found.seeds == 4
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    alone = Row("l2", (result("l2", 7),))
    assert alone.difference("average_accuracy", section.rows[0]) is None


def test_what_rows_are_compared_with_is_a_row_of_some_experiment():
    results = [result("ewc", 0, experiment="task"), result("si", 0, experiment="class")]
    assert [part.reference and part.reference.label for part in sections(results, "ewc")] == ["ewc", None]
    with pytest.raises(InputError, match="unknown row 'ewcc', did you mean 'ewc'\\? known are ewc, si"):
        sections(results, "ewcc")
