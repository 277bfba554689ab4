"""Recipes in mergekit's format, and the plans that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging.models import LAYERS, read, tensors, write

from lifelong.errors import InputError
from lifelong.merging import engine, planning
from lifelong.merging.plan import Job, Plan
from lifelong.merging.recipe import parsed, value_of
from lifelong.merging.rules.linear import Linear


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    base = tensors(0)
    write(folder / "base", base, layer_types=["full", "sliding", "full", "other"], vocab_size=40)
    (folder / "base" / "tokenizer.json").write_text("{}")
    for seed, name in enumerate("abc", 1):
        write(folder / name, tensors(seed, base))
    return folder


def plan(models: Path, /, **values: Any) -> Plan:
    return planning.plan(parsed(values), models)


def named(made: Plan, name: str) -> Job:
    return next(job for job in made.jobs if job.name == name)


def linear(made: Plan, name: str) -> Linear:
    rule = named(made, name).rule
    assert isinstance(rule, Linear)
    return rule


Q = "model.layers.{}.attn.q.weight"


@pytest.mark.parametrize(
    ("parameter", "name", "depth", "expected"),
    [
        (0.5, "x", 0.3, 0.5),
        ([0, 1], "x", 0.25, 0.25),
        ([0, 0.5, 0.3], "x", 0.5, 0.5),
        ([0, 0.5, 0.3], "x", 0.75, 0.4),
        ([0, 0.5, 0.3], "x", 1.0, 0.3),
        ([{"filter": "attn", "value": [0, 1]}, {"value": 7}], "m.attn.q", 0.5, 0.5),
        ([{"filter": "attn", "value": [0, 1]}, {"value": 7}], "m.mlp.up", 0.5, 7),
        ([{"filter": "attn", "value": 1}], "m.mlp.up", 0.5, None),
        ([{"filter": "*", "value": 2}], "m.mlp.up", 0.5, 2),
        ({"filter": "mlp", "value": 3}, "m.mlp.up", 0.5, 3),
        (["a", "b", "c"], "x", 0.6, "b"),
        (True, "x", 0.6, True),
    ],
)
def test_the_value_of_a_parameter_for_a_tensor(parameter: Any, name: str, depth: float, expected: Any) -> None:
    recipe = parsed({"merge_method": "x", "models": [{"model": "a"}], "parameters": {"p": parameter}})
    assert value_of(recipe.parameters["p"], name, depth) == pytest.approx(expected)


def test_gradients_run_over_the_layers_and_begin_outside_of_them(models: Path) -> None:
    made = plan(
        models,
        merge_method="linear",
        models=[
            {"model": "a", "parameters": {"weight": [0.1, 0.4]}},
            {"model": "b", "parameters": {"weight": 1}},
        ],
    )
    for layer in range(LAYERS):
        assert linear(made, Q.format(layer)).weight == pytest.approx((0.1 + 0.3 * layer / (LAYERS - 1), 1))
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert linear(made, name).weight == pytest.approx((0.1, 1))


def test_a_models_own_parameters_come_before_those_of_the_recipe(models: Path) -> None:
    made = plan(
        models,
        merge_method="linear",
        models=[{"model": "a", "parameters": {"weight": [{"filter": "mlp", "value": 5}]}}, {"model": "b"}],
        parameters={"weight": 2, "normalize": False},
    )
    assert linear(made, Q.format(0)).weight == (2, 2)
    assert linear(made, "model.layers.0.mlp.up.weight").weight == (5, 2)
    assert linear(made, "model.layers.0.mlp.up.weight").normalize is False


def test_the_base_among_the_models_is_no_expert_of_rules_that_take_a_base(models: Path) -> None:
    listed = [
        {"model": "a", "parameters": {"weight": 2}},
        {"model": "base"},
        {"model": "b", "parameters": {"weight": 3}},
    ]
    job = named(plan(models, merge_method="ties", base_model="base", models=listed), Q.format(1))
    assert job.base is not None
    assert (job.base.model, [source.model for source in job.experts]) == ("base", ["a", "b"])
    assert job.rule is not None
    assert job.rule.each("weight", 2) == [2, 3]
    averaged = named(plan(models, merge_method="linear", models=listed), Q.format(1))
    assert [source.model for source in averaged.experts] == ["a", "base", "b"]


def test_slices_stack_layers_and_the_config_follows(models: Path, tmp_path: Path) -> None:
    made = plan(
        models,
        merge_method="linear",
        base_model="base",
        slices=[
            {"sources": [{"model": "a", "layer_range": [0, 3]}]},
            {
                "sources": [
                    {"model": "b", "layer_range": [1, 4], "parameters": {"weight": [0, 1]}},
                    {"model": "c", "layer_range": [0, 3], "parameters": {"weight": 1}},
                ]
            },
        ],
    )
    list(engine.merge(made, tmp_path / "out", shard_bytes=10**9))
    a, b, c, merged = (read(models / "a"), read(models / "b"), read(models / "c"), read(tmp_path / "out"))
    assert len(merged) == 3 + 6 * 3
    np.testing.assert_array_equal(merged[Q.format(2)], a[Q.format(2)])
    np.testing.assert_array_equal(merged[Q.format(3)], c[Q.format(0)])
    middle = b[Q.format(2)].astype(np.float32) * np.float32(0.5 / 1.5) + c[Q.format(1)] * np.float32(1 / 1.5)
    np.testing.assert_allclose(merged[Q.format(4)].astype(float), middle, rtol=2**-8)
    np.testing.assert_array_equal(merged["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    np.testing.assert_allclose(
        merged["lm_head.weight"].astype(float), c["lm_head.weight"].astype(float), rtol=0, atol=0
    )
    config = planning.open_model(tmp_path / "out").config
    assert config["num_hidden_layers"] == 6
    assert config["layer_types"] == ["full", "sliding", "full", "sliding", "full", "other"]
    assert config["vocab_size"] == 40
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


TWO = [{"model": "a"}, {"model": "b"}]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"models": TWO}, "merge_method: Field required"),
        ({"merge_method": "tise", "models": TWO}, "did you mean 'ties'?"),
        ({"merge_method": "linear", "modles": TWO}, "unknown key 'modles', did you mean 'models'?"),
        ({"merge_method": "linear"}, "either models or slices"),
        ({"merge_method": "linear", "models": []}, "models"),
        ({"merge_method": "linear", "models": TWO, "parameters": {"wieght": 1}}, "'wieght', did you mean 'weight'?"),
        ({"merge_method": "linear", "models": [{"model": "a", "parameters": {"t": 1}}]}, "no parameter 't'"),
        ({"merge_method": "linear", "models": TWO, "parameters": {"weight": [1, -1]}}, None),
        ({"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": -1}}, TWO[1]]}, "sum to zero"),
        ({"merge_method": "linear", "models": [*TWO, {"model": "d"}]}, "no model at"),
        ({"merge_method": "ties", "models": TWO}, "needs a base"),
        ({"merge_method": "ties", "base_model": "a", "models": [{"model": "a"}]}, "no model beside the base"),
        (
            {"merge_method": "ties", "base_model": "base", "models": TWO, "parameters": {"density": 2}},
            "less than or equal",
        ),
        ({"merge_method": "ties", "base_model": "base", "models": TWO, "parameters": {"density": "x"}}, "density"),
        ({"merge_method": "linear", "models": TWO, "dtype": "bfloat61"}, "did you mean 'bfloat16'?"),
        ({"merge_method": "linear", "modules": {}}, "modules"),
        ({"merge_method": "linear", "slices": [{"sources": [{"model": "a"}]}]}, "layer_range"),
        ({"merge_method": "linear", "slices": [{"sources": [{"model": "a", "layer_range": [2, 9]}]}]}, "0 to 3"),
        (
            {
                "merge_method": "linear",
                "slices": [
                    {
                        "sources": [
                            {"model": "a", "layer_range": [0, 2]},
                            {"model": "b", "layer_range": [0, 3]},
                        ]
                    }
                ],
            },
            "as many layers each",
        ),
    ],
)
def test_wrong_recipes_get_one_line(values: dict[str, Any], says: str | None, models: Path) -> None:
    if says is None:
        plan(models, **values)
        return
    with pytest.raises(InputError) as caught:
        plan(models, **values)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_tensors_that_do_not_fit_are_named(models: Path, tmp_path: Path) -> None:
    values = read(models / "a")
    values["extra.weight"] = values.pop("lm_head.weight")
    del values["model.norm.weight"]
    write(tmp_path / "odd", values)
    (tmp_path / "b").symlink_to(models / "b")
    with pytest.raises(InputError) as caught:
        plan(tmp_path, merge_method="linear", models=[{"model": "b"}, {"model": "odd"}])
    for words in (
        "(3)",
        "lm_head.weight is missing in odd",
        "model.norm.weight is missing",
        "extra.weight is only in odd",
    ):
        assert words in str(caught.value)
    values = read(models / "a")
    for name in ("lm_head.weight", "model.norm.weight"):
        values[name] = values[name][:7]
    write(tmp_path / "short", values)
    with pytest.raises(InputError) as caught:
        plan(tmp_path, merge_method="linear", models=[{"model": "b"}, {"model": "short"}])
    for words in ("2 tensors", "lm_head.weight is [40, 24] in b, [7, 24] in short", "model.norm.weight"):
        assert words in str(caught.value)


def test_integers_are_copied_and_do_not_merge_with_fractions(models: Path, tmp_path: Path) -> None:
    counts = {name: {**read(models / name), "position_ids": np.arange(5) + index} for index, name in enumerate("ab")}
    for name, each in counts.items():
        write(tmp_path / name, each)
    list(engine.merge(plan(tmp_path, merge_method="linear", models=TWO), tmp_path / "out", shard_bytes=10**9))
    np.testing.assert_array_equal(read(tmp_path / "out")["position_ids"], np.arange(5))
    write(tmp_path / "c", {**counts["a"], "position_ids": np.arange(5.0)})
    with pytest.raises(InputError, match="integers and fractions"):
        plan(tmp_path, merge_method="linear", models=[{"model": "a"}, {"model": "c"}])


def test_pickled_weights_are_read_and_pickled_code_is_not_run(models: Path, tmp_path: Path) -> None:
    import torch

    values = {name: torch.tensor(each.astype(np.float32)) for name, each in read(models / "a").items()}
    (tmp_path / "good").mkdir()
    torch.save(values, tmp_path / "good" / "pytorch_model.bin")
    (tmp_path / "b").symlink_to(models / "b")
    made = plan(tmp_path, merge_method="linear", models=[{"model": "good"}, {"model": "b"}])
    assert len(made.jobs) == len(values)
    (tmp_path / "bad").mkdir()
    torch.save({"a": Marker(tmp_path / "ran")}, tmp_path / "bad" / "pytorch_model.bin")
    with pytest.raises(InputError, match="nothing of it was run"):
        plan(tmp_path, merge_method="linear", models=[{"model": "bad"}, {"model": "b"}])
    assert not (tmp_path / "ran").exists()


class Marker:
    """What a hostile pickle does when it is loaded: run something."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["cut", "index", "missing shard", "twice", "no weights"])
def test_damaged_folders_get_one_line(damage: str, models: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "odd", read(models / "a"), shards=2)
    first = folder / "model-00001-of-00002.safetensors"
    if damage == "cut":
        first.write_bytes(first.read_bytes()[:-5])
    elif damage == "index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    elif damage == "missing shard":
        first.unlink()
    elif damage == "twice":
        first.write_bytes((folder / "model-00002-of-00002.safetensors").read_bytes())
    else:
        for path in folder.glob("model*"):
            path.unlink()
    with pytest.raises(InputError, match="odd"):
        plan(tmp_path, merge_method="linear", models=[{"model": "odd"}])
