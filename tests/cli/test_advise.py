"""`lifelong advise`: the rules, the limits, and the order of what is left."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lifelong import cli
from lifelong.experiments import advise
from lifelong.experiments.advise import Constraints
from lifelong.methods import METHODS


def said(*options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["advise", *options, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_method_is_spoken_of_once() -> None:
    assert sorted(each.method for each in advise.advise(Constraints())) == sorted(METHODS)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_measured_table_has_every_method_in_every_scenario_that_it_can_do(scenario: str) -> None:
    rows = advise.measured()["scenarios"][scenario]
    able = {name for name, kind in METHODS.items() if scenario in kind.scenarios}
    assert rows.keys() == able
    assert all(0 <= row["accuracy"] <= 1 and row["time"] > 0 and row["bytes"] >= 0 for row in rows.values())


def test_measured_accuracy_orders_what_fits() -> None:
    fitting = [each for each in advise.advise(Constraints()) if each.fits]
    reached = [each.accuracy for each in fitting]
    assert reached == sorted(reached, reverse=True)
    assert len(fitting) > 20


def test_who_may_keep_no_samples_is_offered_no_rehearsal() -> None:
    found = {each.method: each for each in advise.advise(Constraints(keep_samples=False))}
    for name, kind in METHODS.items():
        if kind.keeps_samples:
            assert not found[name].fits
            assert "it keeps samples of old tasks" in found[name].reasons
    assert found["ewc"].fits


def test_without_boundaries_a_setting_may_free_a_method() -> None:
    found = {each.method: each for each in advise.advise(Constraints(boundaries=False))}
    assert not found["ewc"].fits
    assert found["ewc"].reasons == ("it must know where a task ends",)
    assert found["mas"].fits
    assert found["mas"].reasons == ("does without task boundaries with online = True",)


def test_scenarios_that_a_method_cannot_do_rule_it_out() -> None:
    found = {each.method: each for each in advise.advise(Constraints(scenario="class"))}
    assert found["packnet"].reasons == ("it cannot do scenario class",)
    assert {each.method: each for each in advise.advise(Constraints(scenario="task"))}["packnet"].fits


def test_limits_of_time_and_memory_are_held_against_what_was_measured() -> None:
    rows = advise.measured()["scenarios"]["class"]
    found = {each.method: each for each in advise.advise(Constraints(time=1.5, megabytes=2.0))}
    for name, row in rows.items():
        over = row["time"] > 1.5 or row["bytes"] > 2e6
        assert found[name].fits is not over, name
    assert "x the time of fine-tuning" in found["gem"].reasons[0]


def test_memory_is_scaled_to_the_network_but_for_samples() -> None:
    table = advise.measured()
    small = {each.method: each.megabytes or 0 for each in advise.advise(Constraints())}
    large = {
        each.method: each.megabytes or 0 for each in advise.advise(Constraints(network=10 * table["network_megabytes"]))
    }
    assert large["ewc"] == pytest.approx(10 * small["ewc"])
    assert large["er"] == pytest.approx(small["er"], rel=0.3)
    for name in ("joint", "icarl", "bic", "gdumb"):
        row = table["scenarios"]["class"][name]
        network, samples = row["bytes"] - row["stored_bytes"], row["stored_bytes"]
        assert min(network, samples) > 5e5
        assert 1e6 * large[name] == pytest.approx(10 * network + samples)


def test_pretrained_features_put_the_classifiers_on_them_first() -> None:
    first = advise.advise(Constraints(pretrained=True))[:3]
    assert {each.method for each in first} <= {"ncm", "slda", "ranpac", "feature-extraction"}
    assert all(each.reasons == ("made for pretrained features",) for each in first)


def test_it_says_what_it_measured_and_why_others_are_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["advise", "--scenario", "class", "--no-keep-samples", "--time", "3"]) == 0
    out = capsys.readouterr().out
    assert "lifelong compare recipes/methods.yaml" in out
    assert "Not for you:" in out
    assert "er: it keeps samples of old tasks" in out


def test_where_nothing_fits_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["advise", "--time", "0.001", "--no-keep-samples"]) == 0
    assert "No method fits all of this" in capsys.readouterr().out


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = said("--scenario", "task", capsys=capsys)
    assert found["given"]["scenario"] == "task"
    assert {"method", "fits", "reasons", "accuracy", "time", "megabytes"} <= found["advice"][0].keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scenario", "clas"], "scenario = 'clas'"),
        (["--time", "0"], "time = 0"),
        (["--megabyte", "3"], "did you mean"),
    ],
)
def test_wrong_input_gets_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["advise", *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_methods_for_classes_do_not_fit_where_numbers_are_predicted() -> None:
    found = {each.method: each for each in advise.advise(Constraints(scenario="task", numbers=True))}
    assert found["ewc"].fits
    assert not found["der"].fits
    assert found["der"].reasons == ("it is for classes",)
