"""Meta-training from the recipe to the result: it learns, goes on to the bit, and is a start for streams."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lifelong.cli import main
from lifelong.errors import DivergedError, InputError, StateError
from lifelong.experiments import meta_build, meta_tasks
from lifelong.experiments.meta_plan import meta_plan
from lifelong.experiments.meta_recipe import meta_differences, meta_recipe, meta_record
from lifelong.experiments.meta_run import MetaRunEvent, Started, meta_events, meta_test
from lifelong.experiments.run import Every, Finished
from lifelong.meta import ALGORITHMS, Engine, FewShot
from lifelong.reports import misses, protocol
from lifelong.training.meta_evaluation import evaluate
from lifelong.training.meta_loop import Iteration, Validated, ValidationDiverged

DIGITS: dict[str, Any] = {
    "data": "digits",
    "ways": 2,
    "shots": 2,
    "queries": 5,
    "train_classes": 5,
    "validation_classes": 2,
    "model": {"name": "mlp", "hidden": 16},
    "iterations": 12,
    "tasks": 4,
    "validate_every": 5,
    "validation_tasks": 10,
    "test_tasks": 20,
    "tasks_at_once": 2,
    "formulation": "columns",
    "threads": 1,
}


WAVES: dict[str, Any] = {
    "data": "sinusoids",
    "shots": 10,
    "queries": 10,
    "iterations": 12,
    "tasks": 4,
    "validate_every": 4,
    "validation_tasks": 40,
    "test_tasks": 40,
    "tasks_at_once": 4,
    "formulation": "columns",
    "threads": 1,
}


def result_of(values: dict[str, Any], out: Path, **options: Any) -> dict[str, Any]:
    *_, last = meta_events(meta_recipe(values), out, **options)
    assert isinstance(last, Finished)
    return last.result


def _pictures(folder: Path) -> Path:
    """Return `folder` with pictures of 9 x 9 pixels in 10 classes."""
    for label, number in itertools.product(range(10), range(7)):
        path = folder / f"kind {label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), 25 * label + number).save(path)
    return folder


def stopped_after(iterations: int, values: dict[str, Any], out: Path) -> None:
    """Kill a training that saves at every third iteration."""
    for event in meta_events(meta_recipe(values), out, checkpoint_every=Every(3, None)):
        if isinstance(event, Iteration) and event.iteration == iterations:
            return


@pytest.mark.parametrize("name", ["maml", "meta-sgd", "reptile", "fine-tuning"])
def test_a_training_that_was_killed_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    values = {**DIGITS, "algorithm": name, "schedule": "linear"}
    whole = result_of(values, tmp_path / "whole")
    stopped_after(8, values, tmp_path / "killed")
    resumed = [*meta_events(meta_recipe(values), tmp_path / "killed", resume=True)]
    assert isinstance(resumed[0], Started)
    assert resumed[0].iteration == 6
    for file in ("meta.safetensors", "model.safetensors"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    again = json.loads((tmp_path / "killed" / "result.json").read_text())
    for key in ("test", "interval", "calibration", "curve", "validation", "best_validation"):
        assert again[key] == whole[key], key


def test_what_is_set_by_hand_is_heeded_when_a_training_goes_on(tmp_path: Path) -> None:
    values = {**DIGITS, "algorithm": "maml"}
    stopped_after(8, values, tmp_path)
    changed = {**values, "formulation": "vmap", "tasks_at_once": 3}
    resumed = [*meta_events(meta_recipe(changed), tmp_path, resume=True)]
    assert resumed[0] == Started(Engine("vmap", 3, 1), 6)
    assert isinstance(resumed[-1], Finished)


def test_sinusoids_are_learned_and_adapted_to(tmp_path: Path) -> None:
    values = {"shots": 10, "queries": 10, "iterations": 300, "tasks": 16, "lr": 0.01, "validate_every": 0}
    found = result_of(
        {**values, "algorithm": {"name": "maml", "rate": 0.01, "test_steps": 3}, "threads": 1}, tmp_path / "maml"
    )
    assert len(found["test"]) == 4
    assert found["test"][3] < found["test"][0] - 0.5
    assert found["test"][3] + found["interval"][3] < 3.2  # the mean wave of all tasks has about 4.2
    assert found["calibration"] == []
    assert found["measure"] == "mean squared error"


@pytest.mark.parametrize("name", [name for name, kind in ALGORITHMS.items() if kind.regression])
def test_every_algorithm_learns_sinusoids_by_default(name: str, tmp_path: Path) -> None:
    """Few iterations of what is the default otherwise; the mean wave of all tasks has an error of about 4.2."""
    values = {"algorithm": name, "iterations": 300, "validate_every": 150, "formulation": "columns", "threads": 1}
    found = result_of({**values, "tasks_at_once": 32}, tmp_path)
    assert found["recipe"]["shots"] == found["recipe"]["queries"] == 10
    assert len(found["validation"]) == 2
    assert found["test"][-1] < min(found["test"][0], 3.2)


def test_digits_are_told_apart_by_default(tmp_path: Path) -> None:
    values = {"data": "digits", "iterations": 200, "formulation": "columns", "tasks_at_once": 32, "threads": 1}
    found = result_of(values, tmp_path)
    assert found["recipe"]["ways"] == 2
    assert found["test"][-1] > 0.7
    assert meta_recipe({"data": "digits", "ways": 3}).ways == 3


def test_what_is_usual_for_one_data_set_is_not_for_domains() -> None:
    made = meta_recipe({"data": "digits", "test_data": "mnist", "validation_data": "fashion_mnist"})
    assert made.ways is None
    assert meta_recipe({"data": "omniglot", "test_data": "digits"}).train_classes is None
    kept = {"algorithm": {"name": "meta-sgd", "steps": 5}}
    assert meta_recipe(kept).algorithm_settings == {"steps": 5}
    assert meta_recipe({"algorithm": {"name": "maml", "rate": 0.02}}).algorithm_settings == {"rate": 0.02}


def test_the_best_weights_on_validation_tasks_are_kept(tmp_path: Path) -> None:
    values = {**DIGITS, "iterations": 60, "lr": 0.05, "patience": 2}
    events = [*meta_events(meta_recipe(values), tmp_path / "run")]
    looks = [event for event in events if isinstance(event, Validated)]
    scores = [look.found.score[-1] for look in looks]
    result = events[-1].result  # type: ignore[union-attr]
    assert result["best_validation"] == max(scores)
    assert result["iterations"] < 60
    assert [look.best for look in looks[-2:]] == [False, False]
    judged = meta_test(tmp_path / "run", {"evaluate_on": "validation", "test_tasks": 10})
    assert judged["test"][-1] == pytest.approx(max(scores))


def test_the_best_weights_of_reptile_have_the_moments_that_they_were_judged_with(tmp_path: Path) -> None:
    values = {**WAVES, "algorithm": {"name": "reptile", "test_steps": 5, "rate": 0.02}, "lr": 0.3, "iterations": 24}
    stopped_after(20, values, tmp_path)
    events = [*meta_events(meta_recipe(values), tmp_path, resume=True)]
    result = events[-1].result  # type: ignore[union-attr]
    scores = {iteration: found for iteration, found, _ in result["validation"]}
    best = min(scores, key=lambda iteration: scores[iteration][-1])
    assert best < 18  # the checkpoint of iteration 18 holds it
    judged = meta_test(tmp_path, {"evaluate_on": "validation", "test_tasks": 40})
    assert judged["test"] == pytest.approx(scores[best], rel=1e-5)


def test_a_test_of_what_was_trained_is_the_one_that_was_made(tmp_path: Path) -> None:
    found = result_of({**DIGITS, "algorithm": "protonet"}, tmp_path / "run")
    again = meta_test(tmp_path / "run", {})
    assert again["test"] == found["test"]
    assert again["calibration"] == found["calibration"]
    more = meta_test(tmp_path / "run", {"ways": 3, "validation_classes": 0, "test_classes": 3})
    assert len(more["test"]) == 1
    assert more["test"] != found["test"]


@pytest.mark.parametrize(
    "changes",
    [
        {"split_seed": 1},
        {"train_classes": None, "test_classes": 7, "validation_classes": 0},
        {"train_classes": 2, "validation_classes": 3, "evaluate_on": "validation"},
        {"data": "digits:0-8", "train_classes": 3},
    ],
)
def test_a_test_on_classes_that_were_trained_on_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    result_of({**DIGITS, "algorithm": "protonet", "iterations": 1}, tmp_path)
    trained = meta_tasks.sources(meta_recipe(DIGITS)).train
    assert isinstance(trained, FewShot)
    with pytest.raises(
        InputError, match=rf"{tmp_path} was trained on class ({'|'.join(trained.pool.names)})\b.*: test"
    ):
        meta_test(tmp_path, changes)
    # Other test classes that are none of these are fine, and so are validation tasks.
    for fine in ({"validation_classes": 0}, {"evaluate_on": "validation"}, {"test_classes": 2}, {"shots": 1}):
        assert meta_test(tmp_path, fine)["test_tasks"] == 20


def test_weights_are_a_start_for_a_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {**DIGITS, "model": {"name": "convnet", "channels": [4, 4], "halve": "stride"}, "iterations": 3}
    result_of({**values, "formulation": "grouped"}, tmp_path / "meta")
    weights = load_file(tmp_path / "meta" / "model.safetensors")
    assert int(weights["trunk.1.num_batches_tracked"]) > 0
    assert not torch.equal(weights["trunk.1.running_mean"], torch.zeros(4))
    command = ["run", "--init", str(tmp_path / "meta"), "--stream", "split-digits", "--scenario", "task", "--json"]
    model = ["--model", "convnet", "--model.channels", "4,4", "--model.halve", "stride"]
    short = ["--lr", "1e-12", "--steps", "1", "--out", str(tmp_path / "run")]
    assert main([*command, *model, *short]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["recipe"]["weights"]["name"] == str(tmp_path / "meta")
    kept = load_file(tmp_path / "run" / "model.safetensors")
    torch.testing.assert_close(kept["trunk.0.weight"], weights["trunk.0.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 3}, r"ways = 3 is more than the 2 classes of validation tasks: .* set validation_classes"),
        ({"algorithm": "mamml"}, "unknown algorithm 'mamml', did you mean 'maml'?"),
        ({"algorithm": {"name": "anil", "rats": 1}}, "algorithm anil has no setting 'rats', did you mean 'rate'?"),
        ({"ways": 1}, "recipe: ways = 1 should be greater than or equal to 2"),
        ({"test_tasks": 1}, "recipe: test_tasks = 1 should be greater than or equal to 2"),
        ({"train_classes": 4, "test_classes": 9}, "digits has 10 classes, which do not suffice for train_classes = 4"),
        (
            {"validation_classes": 11},
            "do not suffice for train_classes = 5, validation_classes = 11 and test_classes = 0",
        ),
        ({"algorithm": {"name": "anil", "layers": []}}, "algorithm anil: layers = .* at least 1 item"),
        ({"algorithm": {"name": "anil", "layers": "haed"}}, "layers.0 = 'haed' should be 'trunk' or 'head'"),
        ({"data": "digits,", "train_classes": None, "validation_classes": None}, "data = 'digits,' has no name before"),
        ({"evaluate_on": "validation", "validation_classes": 0}, "needs such tasks: set validation_classes"),
        ({"train_classes": 9}, "digits has 10 classes, which do not suffice for train_classes = 9"),
        ({"shots": 500}, r"class \d has \d+ samples, and shots \+ queries = 500 \+ 5 are needed of each"),
        ({"algorithm": "protonet", "statistics": "per-step"}, "algorithm protonet keeps no statistics per-step"),
        ({"tasks_at_once": 0}, "recipe: tasks_at_once = 0 should be greater than or equal to 1"),
        ({"tasks_at_once": "-3"}, "recipe: tasks_at_once = '-3' should be greater than or equal to 1"),
        ({"tasks_at_once": "many"}, "recipe: tasks_at_once = 'many' should be a valid integer"),
        ({"patience": 2, "validate_every": 0}, "patience watches validation tasks"),
        (
            {"data": "digits", "rotations": "all", "iterationz": 1},
            "has no setting 'iterationz', did you mean 'iterations'?",
        ),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        result_of({**DIGITS, **changes}, tmp_path / "run")
    # The recipe that is put right may have the folder.
    assert not (tmp_path / "run" / "recipe.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "protonet"}, "algorithm protonet needs classes, and sinusoids have none"),
        ({"rotations": "all"}, "rotations = all means nothing for sinusoids"),
        ({"ways": 3}, "ways = 3 means nothing for sinusoids"),
        ({"train_classes": 3}, "train_classes = 3 means nothing for sinusoids"),
    ],
)
def test_sinusoids_have_no_classes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        meta_build.algorithm(meta_recipe({**WAVES, **changes}))


def test_divergence_is_told_with_task_step_and_rate(tmp_path: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"loss of task \d of 4 .* in iteration 1, at inner step \d+ with rate = 1e\+30"
    ):
        result_of({**DIGITS, "algorithm": {"name": "maml", "rate": 1e30, "steps": 3}}, tmp_path / "run")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {**WAVES, "algorithm": {"name": "maml", "steps": 0, "rate": 3, "test_steps": 60}},
            r"test task \d+ of 40 has answers that .* at inner step \d+ with rate = 3: try a smaller one, or fewer",
        ),
        (
            {**DIGITS, "algorithm": {"name": "maml", "steps": 0, "rate": 1e30, "test_steps": 5}},
            r"test task 1 of 20 has answers that .* at inner step [12] with rate = 1e\+30",
        ),
        (
            {**DIGITS, "algorithm": {"name": "fine-tuning", "rate": 1e30, "test_steps": 5}},
            r"test task 1 of 20 has answers that .* at inner step [12] with rate = 1e\+30",
        ),
    ],
    ids=["sinusoids", "digits", "fine-tuning"],
)
def test_adaptation_that_diverges_in_looks_and_tests_is_told_and_what_was_trained_is_kept(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    kept = f"; what was trained is kept, and `lifelong meta test {tmp_path}"
    events: list[MetaRunEvent] = []
    with pytest.raises(DivergedError, match=f"{message}.*{kept}"):
        # What comes before the error is taken all the same.
        events.extend(meta_events(meta_recipe(values), tmp_path))
    every = values["validate_every"]
    looks = [event for event in events if isinstance(event, ValidationDiverged)]
    assert [look.iteration for look in looks] == [*range(every, 12, every), 12]
    assert all("validation task" in look.reason for look in looks)
    assert not (tmp_path / "result.json").exists()
    with pytest.raises(DivergedError, match=message):
        meta_test(tmp_path, {})
    tested = meta_test(tmp_path, {"algorithm_settings": {"rate": 0.001}})
    assert all(math.isfinite(score) for score in tested["test"])
    # The checkpoint is as good as it was, and the training that goes on from it says the same.
    with pytest.raises(DivergedError, match=message):
        [*meta_events(meta_recipe(values), tmp_path, resume=True)]


def test_another_head_is_refused_in_a_test(tmp_path: Path) -> None:
    result_of(DIGITS, tmp_path / "run")
    with pytest.raises(InputError, match="ways = 3: the head that maml learned has 2 outputs"):
        meta_test(tmp_path / "run", {"ways": 3, "train_classes": 4, "validation_classes": 3})
    with pytest.raises(
        InputError, match=r"trunk\.1\.weight has the shape \[16, 64\] in .*: test on samples of the size"
    ):
        meta_test(tmp_path / "run", {"data": f"{_pictures(tmp_path / 'pictures')}"})
    with pytest.raises(InputError, match="holds no finished meta-training"):
        meta_test(tmp_path, {})
    for broken in ("[]", '"text"', "{"):
        (tmp_path / "run" / "recipe.json").write_text(broken)
        with pytest.raises(InputError, match="holds no finished meta-training"):
            meta_test(tmp_path / "run", {})


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    result_of({**DIGITS, "iterations": 1}, tmp_path)
    whole = (tmp_path / "meta.safetensors").read_bytes()
    (tmp_path / "meta.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StateError, match=r"meta\.safetensors is damaged"):
        meta_test(tmp_path, {})


def test_a_result_that_is_none_is_told(tmp_path: Path) -> None:
    result_of({**DIGITS, "iterations": 1}, tmp_path)
    (tmp_path / "result.json").write_text('{"kind": "meta"}')
    with pytest.raises(StateError, match=r"result\.json is not the result of a meta-training; remove it"):
        result_of({**DIGITS, "iterations": 1}, tmp_path, resume=True)


def test_a_test_has_other_ways_and_shots_than_training(tmp_path: Path) -> None:
    result_of({**DIGITS, "algorithm": "protonet", "train_classes": 3, "test_classes": 5, "iterations": 2}, tmp_path)
    found = meta_test(tmp_path, {"ways": 5, "shots": 1})  # more than there are classes to train or to validate on
    assert (found["recipe"]["train_ways"], found["recipe"]["train_shots"]) == (2, 2)
    assert protocol(found) == "5-way 1-shot, 5 queries, trained 2-way 2-shot"


def test_a_result_tells_which_classes_are_for_what(tmp_path: Path) -> None:
    found = result_of({**DIGITS, "iterations": 1, "rotations": "all"}, tmp_path)
    parts = found["classes"]
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [5, 2, 3]
    assert sorted(name for part in parts.values() for name in part) == [str(digit) for digit in range(10)]


def test_weights_that_need_no_gradient_are_not_meta_learned(tmp_path: Path) -> None:
    values = {**DIGITS, "model": "meta.problems:half_frozen", "formulation": "auto", "tasks_at_once": "auto"}
    found = result_of(values, tmp_path)
    learned = load_file(tmp_path / "meta.safetensors")
    assert sorted(learned) == ["head.bias", "head.weight", "trunk.3.bias", "trunk.3.weight"]
    assert found["parameters"] == sum(each.numel() for each in learned.values())
    whole = load_file(tmp_path / "model.safetensors")
    for formulation in ("grouped", "columns", "vmap", "loop"):
        again = meta_test(tmp_path, {"formulation": formulation})
        assert again["test"] == pytest.approx(found["test"])
    # Other test tasks are answered with the weights that stayed as well.
    recipe = meta_recipe(values)
    tasks, how = meta_tasks.sources(recipe), Engine("columns", 2)
    training = meta_build.training(recipe, tasks, meta_build.algorithm(recipe), how)
    judged = evaluate(
        training.algorithm, training.problem, how, learned, {}, tasks.test, tasks=20, seed=5, purpose="test"
    )
    assert meta_test(tmp_path, {"seed": 5})["test"] == pytest.approx(judged.score)
    # The weights that stayed are those that the recipe's seed begins with.
    begun, _ = meta_build.trunk(recipe, torch.zeros(2, 1, 8, 8), 2)
    assert torch.equal(whole["trunk.1.weight"], begun.state_dict()["1.weight"])


def test_what_adapts_must_have_weights() -> None:
    recipe = meta_recipe({**DIGITS, "algorithm": {"name": "anil", "layers": "trunk"}, "model": {"hidden": []}})
    with pytest.raises(InputError, match="algorithm anil learns what is below the head: give it weights"):
        meta_build.problem(recipe, meta_tasks.sources(recipe), "loop")


def test_the_recipe_of_a_test_can_be_taken_back(tmp_path: Path) -> None:
    for place, values in enumerate((DIGITS, WAVES)):
        result_of({**values, "iterations": 1}, tmp_path / str(place))
        assert meta_recipe(meta_test(tmp_path / str(place), {"shots": 3})["recipe"]).shots == 3


def test_the_error_is_told_where_a_folder_cannot_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DivergedError, match="with rate = "):
        result_of({**DIGITS, "algorithm": {"name": "maml", "rate": 1e30, "steps": 3}}, Path())


def test_a_folder_is_free_again_where_nothing_was_learned_before_divergence(tmp_path: Path) -> None:
    values = {**DIGITS, "algorithm": {"name": "maml", "rate": 1e30, "steps": 3}}
    with pytest.raises(DivergedError):
        result_of(values, tmp_path / "run")
    assert result_of({**values, "algorithm": "maml"}, tmp_path / "run")["iterations"] == 12


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_has_other_ways_where_no_head_is_learned(name: str, tmp_path: Path) -> None:
    values = {**DIGITS, "algorithm": name, "train_ways": 3, "iterations": 1, "validate_every": 0}
    if ALGORITHMS[name].any_ways:
        assert len(result_of(values, tmp_path)["test"]) >= 1
    else:
        with pytest.raises(InputError, match=f"train_ways = 3: the head that {name} learns .*, ways = 2;.* protonet"):
            result_of(values, tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"algorithms": {"maml": 3}}, "algorithms: maml must be a mapping of settings, and is 3"),
        ({"algorithms": 7}, "algorithms = 7 must be names, or a mapping"),
        ({"algorithms": {"../out": {"algorithm": "maml"}}}, "'../out' cannot be the name of a row"),
        ({"experiments": ["a", "b"]}, r"experiments must be a mapping, and is \['a', 'b'\]"),
        ({"experiments": {"a": 3}}, "experiments: a must be a mapping of settings, and is 3"),
        ({"experiments": {"/a": {}}}, "'/a' cannot be the name of a row or an experiment"),
        ({"seeds": True}, "seeds = True must be how many"),
        ({"algorithms": {"maml": {"seed": 3}}, "seeds": 2}, "algorithm maml has no setting 'seed'"),
        ({"seeds": [1, 1]}, "has one of them twice"),
    ],
)
def test_a_plan_of_the_wrong_form_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        meta_plan(values)


def test_rows_and_seeds_may_be_lists() -> None:
    planned = meta_plan({"algorithms": ["maml", "anil"], "seeds": "1,4"})
    assert [each.name for each in planned] == ["maml/seed-1", "maml/seed-4", "anil/seed-1", "anil/seed-4"]
    twice = meta_plan({"data": "digits"}, algorithms=["maml", "maml"])
    assert [each.name for each in twice] == ["maml/seed-0"]
    assert [each.name for each in meta_plan({"algorithms": {1: {"algorithm": "maml"}}})] == ["1/seed-0"]


def test_recipes_survive_a_round_trip() -> None:
    assert [meta_recipe({"tasks_at_once": each}).tasks_at_once for each in ("auto", "4", 4)] == ["auto", 4, 4]
    made = meta_recipe({**DIGITS, "algorithm": {"name": "anil", "rate": 0.1, "layers": ["head"]}})
    assert meta_recipe(meta_record(made)) == made
    assert meta_differences(meta_record(made), meta_record(meta_recipe({**meta_record(made), "threads": 2}))) == []


def test_a_plan_is_algorithms_times_seeds() -> None:
    planned = meta_plan(
        {
            "data": "digits",
            "algorithms": {"maml": {"rate": 0.2}, "slow": {"algorithm": "maml", "rate": 0.01, "lr": 0.1}},
            "seeds": 2,
            "experiments": {"a": {"ways": 2}, "b": {"algorithms": {"maml": {"steps": 3}}, "seeds": 1}},
        }
    )
    assert [each.name for each in planned] == [
        "a/maml/seed-0",
        "a/maml/seed-1",
        "a/slow/seed-0",
        "a/slow/seed-1",
        "b/maml/seed-0",
        "b/slow/seed-0",
    ]
    assert planned[3].recipe.algorithm_settings == {"rate": 0.01}
    assert planned[3].recipe.lr == 0.1
    assert planned[4].recipe.algorithm_settings == {"rate": 0.2, "steps": 3}
    chosen = meta_plan(
        {"algorithms": {"maml": {"lr": 0.1}, "anil": {}}, "experiments": {"a": {"lr": 0.2}, "b": {}}},
        {"lr": 0.5},
        algorithms=["maml"],
        experiments=["b"],
    )
    assert [(each.name, each.recipe.lr) for each in chosen] == [("b/maml/seed-0", 0.5)]
    ranged = meta_plan({"algorithms": {"maml": {"expected": [0.5, 1]}, "anil": {}}})
    assert [each.expected for each in ranged] == [(0.5, 1.0), None]
    with pytest.raises(InputError, match=r"algorithm maml: expected must be \[low, high\], and is 0.5"):
        meta_plan({"algorithms": {"maml": {"expected": 0.5}}})
    with pytest.raises(InputError, match="unknown experiment 'c'"):
        meta_plan({"experiments": {"a": {}}}, experiments=["c"])
    with pytest.raises(InputError, match=r"algorithm maml has no setting 'stpes', did you mean 'steps'?"):
        meta_plan({"algorithms": {"maml": {"stpes": 1}}})


def test_a_mean_outside_its_range_is_told() -> None:
    def run(name: str, last: float) -> dict[str, Any]:
        return {"name": name, "test": [0.0, last], "expected": [0.6, 0.7]}

    found = [run("maml/seed-0", 0.5), run("maml/seed-1", 0.8), run("anil/seed-0", 0.8), run("anil/seed-1", 0.9)]
    assert misses(found) == ["anil: 0.85 after the last step, expected 0.6 to 0.7"]


def test_the_command_trains_tests_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    rows = {"fomaml": {}, "protonet": {"train_ways": 3, "rotations": "train"}}
    recipe.write_text(json.dumps({**DIGITS, "iterations": 4, "algorithms": rows}))
    assert main(["meta", "train", str(recipe), "--out", str(tmp_path / "runs"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found] == ["fomaml/seed-0", "protonet/seed-0"]
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "Adapting to new tasks" in page
    assert "data:image/png" in page
    assert main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "again.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert (tmp_path / "again.html").is_file()
    for name in ("again.md", "again.MD"):
        assert main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / name)]) == 2
        assert "the page of meta-trainings has no form in Markdown" in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    other = tmp_path / "other.json"
    words = [str(tmp_path / "runs" / "fomaml" / "seed-0"), "--test-tasks", "7", "--out", str(other), "--json"]
    assert main(["meta", "test", *words]) == 0
    assert json.loads(capsys.readouterr().out)["test_tasks"] == json.loads(other.read_text())["test_tasks"] == 7
    assert not (tmp_path / "runs" / "fomaml" / "seed-0" / "test.json").exists()
    assert main(["meta", "test", str(tmp_path / "runs" / "protonet" / "seed-0")]) == 0
    assert "2-way 2-shot, 5 queries, rotated in training, trained 3-way" in capsys.readouterr().out
    assert main(["meta", "train", "--out", str(tmp_path / "runs" / "fomaml" / "seed-0")]) == 2
    assert "holds a run of another recipe" in capsys.readouterr().err
    assert main(["meta", "tset", "x"]) == 2
    assert "unknown action 'tset', did you mean 'test'?" in capsys.readouterr().err


def test_a_row_that_diverges_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"maml": {"rate": 1e30, "steps": 3}, "protonet": {}}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "runs"
    recipe.write_text(json.dumps({**DIGITS, "iterations": 4, "algorithms": rows}))
    assert main(["meta", "train", str(recipe), "--out", str(out), "--json"]) == 2
    told = capsys.readouterr()
    assert [each["name"] for each in json.loads(told.out)] == ["protonet/seed-0"]
    errors = [line for line in told.err.splitlines() if line.startswith("lifelong: error")]
    assert len(errors) == 1
    assert errors[0].startswith("lifelong: error: maml/seed-0: the loss of task ")
    assert (out / "report.html").is_file()
    assert main(["meta", "train", str(recipe), "--algorithms", "maml", "--out", str(tmp_path / "none"), "--json"]) == 2
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "none" / "report.html").exists()


def test_a_wrong_row_is_named_before_any_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "runs"
    recipe.write_text(json.dumps({**DIGITS, "algorithms": {"protonet": {}, "maml": {"rate": -1}}}))
    assert main(["meta", "train", str(recipe), "--out", str(out)]) == 2
    assert "error: maml/seed-0: algorithm maml: rate = -1 should be greater than 0" in capsys.readouterr().err
    assert not out.exists()
    # What only the data can tell ends the work when its turn comes, and what is done has its page.
    recipe.write_text(json.dumps({**DIGITS, "algorithms": {"protonet": {}, "maml": {"shots": 900}}}))
    assert main(["meta", "train", str(recipe), "--iterations", "2", "--out", str(out)]) == 2
    assert "error: maml/seed-0: class " in capsys.readouterr().err
    assert (out / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "{out}/recipe.yaml", "--out", "{out}/run"], "is a comparison of methods: lifelong compare"),
        (["train", "--experiments", "a", "--out", "{out}/run"], "--experiments a chooses among those of a recipe"),
        (["test", "{out}", "--lr", "0.1"], "--lr is of training: leave it out of a test"),
        (["test", "{out}", "--optimizer.momentum", "0.1"], "--optimizer is of training"),
        (["test", "{out}", "--seeds", "3"], "--seeds is of training"),
        (["test", "{out}", "--resume"], "--resume is of training"),
        (["test", "{out}", "--out", "{out}"], "is a folder: name a file, such as {out}/test.json"),
        (["test", "{out}", "--out", ""], "is a folder: name a file"),
        (["test", "{out}", "--out", "{out}/none/test.json"], "there is no folder {out}/none"),
        (["test", "{out}", "--out", "{out}/result.json"], "is what training left: choose another file"),
    ],
)
def test_words_that_do_nothing_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("methods: [ewc]")
    assert main(["meta", *(word.format(out=tmp_path) for word in words)]) == 2
    assert said.format(out=tmp_path) in capsys.readouterr().err


def test_a_listed_equation_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "meta", "matching-net"]) == 0
    assert "[y_i = c]" in capsys.readouterr().out


def test_all_algorithms_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "meta", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed.keys() == ALGORITHMS.keys()
    assert listed["maml"]["paper"].endswith("1703.03400")
    assert all(setting["meaning"] for each in listed.values() for setting in each["settings"])
