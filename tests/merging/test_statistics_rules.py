"""Fisher merging and RegMean: rules that know more of an expert than its weights, in memory and on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lifelong
from lifelong import curvature, tree
from lifelong.errors import InputError
from lifelong.merging import collect, engine
from lifelong.merging.planning import plan
from lifelong.merging.recipe import MergeRecipe
from lifelong.merging.rule import BLOCK
from lifelong.merging.rules.fisher import Fisher
from lifelong.merging.rules.regmean import RegMean
from lifelong.merging.statistics import path_of


def mlp(seed: int, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, outputs)).double()


def samples(seed: int, count: int = 40) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return list((torch.randn(count, 4, generator=generator, dtype=torch.float64) @ mixing).split(16))


@pytest.mark.parametrize("size", [1, 37, BLOCK + 5])
def test_fisher_is_the_mean_weighted_by_precision(size: int) -> None:
    random = np.random.default_rng(0)
    experts = [random.normal(size=size) for _ in range(3)]
    precisions = [random.gamma(1, size=size) * 1e-30 for _ in range(3)]
    weighted = [w * f for w, f in zip((1.0, 2.0, 0.5), precisions, strict=True)]
    expected = sum(w * e for w, e in zip(weighted, experts, strict=True)) / sum(weighted)
    rule = Fisher(weight=(1.0, 2.0, 0.5))
    np.testing.assert_allclose(rule(None, experts, statistics=precisions), expected, rtol=1e-9, atol=1e-9)
    other = rule(None, [*map(torch.tensor, experts)], statistics=[*map(torch.tensor, precisions)])
    np.testing.assert_allclose(other.numpy(), expected, rtol=1e-9, atol=1e-9)
    narrow = rule(None, [e.astype(np.float32) for e in experts], statistics=[f.astype(np.float32) for f in precisions])
    np.testing.assert_allclose(narrow, expected, rtol=1e-5, atol=1e-5)


def test_fisher_where_no_expert_cares_and_with_a_floor() -> None:
    experts = [np.array([1.0, 1.0]), np.array([4.0, 4.0])]
    importances = [np.array([0.0, 1.0]), np.array([0.0, 0.0])]
    np.testing.assert_allclose(Fisher()(None, experts, statistics=importances), [2.5, 1.0])
    np.testing.assert_allclose(Fisher(weight=(1.0, 2.0))(None, experts, statistics=importances), [3.0, 1.0])
    np.testing.assert_allclose(Fisher(floor=0.5)(None, experts, statistics=importances), [2.5, 2.0])
    # Without importances, as buffers are: the average.
    np.testing.assert_allclose(Fisher()(None, experts), [2.5, 2.5])


def test_fisher_of_equal_experts_is_exact() -> None:
    random = np.random.default_rng(0)
    tensor = random.normal(size=99).astype(np.float32)
    importances = [random.random(99).astype(np.float32) for _ in range(3)]
    np.testing.assert_array_equal(Fisher()(None, [tensor.copy() for _ in range(3)], statistics=importances), tensor)


def test_regmean_is_the_least_squares_layer() -> None:
    random = np.random.default_rng(0)
    inputs = [random.normal(size=(9, 5)) @ random.normal(size=(5, 5)) for _ in range(3)]
    experts = [random.normal(size=(4, 5)) for _ in range(3)]
    targets = np.concatenate([x @ w.T for x, w in zip(inputs, experts, strict=True)])
    expected = np.linalg.lstsq(np.concatenate(inputs), targets, rcond=None)[0].T
    grams = [x.T @ x for x in inputs]
    np.testing.assert_allclose(RegMean(alpha=1.0)(None, experts, statistics=grams), expected, rtol=1e-6, atol=1e-6)
    other = RegMean(alpha=1.0)(None, [*map(torch.tensor, experts)], statistics=[*map(torch.tensor, grams)])
    np.testing.assert_allclose(other.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_regmean_scales_what_is_off_the_diagonal() -> None:
    random = np.random.default_rng(1)
    experts = [random.normal(size=(4, 5)) for _ in range(2)]
    grams = [x.T @ x for x in (random.normal(size=(9, 5)) for _ in range(2))]
    scaled = [0.9 * g + 0.1 * np.diag(np.diag(g)) for g in grams]
    expected = sum(w @ g for w, g in zip(experts, scaled, strict=True)) @ np.linalg.inv(sum(scaled))
    np.testing.assert_allclose(RegMean()(None, experts, statistics=grams), expected, rtol=1e-7, atol=1e-7)
    # With the diagonal alone each input has a precision, as with Fisher merging.
    precise = Fisher()(None, experts, statistics=[np.broadcast_to(np.diag(g), (4, 5)) for g in grams])
    np.testing.assert_allclose(RegMean(alpha=0.0)(None, experts, statistics=grams), precise, rtol=1e-7)


def test_regmean_averages_what_no_input_reaches() -> None:
    random = np.random.default_rng(2)
    experts = [random.normal(size=(3, 6)) for _ in range(2)]
    inputs = [random.normal(size=(2, 6)) for _ in range(2)]
    for each in inputs:
        each[:, 4] = 0  # a unit that never fires
    merged = RegMean(alpha=1.0)(None, experts, statistics=[x.T @ x for x in inputs])
    average = np.mean(experts, axis=0)
    np.testing.assert_allclose(merged[:, 4], average[:, 4], atol=1e-9)
    for x, w in zip(inputs, experts, strict=True):
        # Fewer samples than inputs: both experts can be matched, and are.
        np.testing.assert_allclose(x @ merged.T, x @ w.T, atol=1e-5)
    outside = np.linalg.svd(np.concatenate(inputs))[2][4:]
    np.testing.assert_allclose(merged @ outside.T, average @ outside.T, atol=1e-5)


def test_regmean_of_equal_experts_is_exact() -> None:
    random = np.random.default_rng(3)
    tensor = random.normal(size=(4, 5)).astype(np.float32)
    grams = [x.T @ x for x in (random.normal(size=(9, 5)) for _ in range(3))]
    np.testing.assert_array_equal(RegMean()(None, [tensor.copy() for _ in range(3)], statistics=grams), tensor)
    np.testing.assert_array_equal(RegMean()(None, [tensor[0].copy() for _ in range(3)]), tensor[0])


def test_a_gram_matrix_of_another_layer_is_refused() -> None:
    with pytest.raises(InputError, match=r"'a' \[3\] has importances \[2\]"):
        Fisher()(None, [np.ones(3)], "a", [np.ones(2)])
    with pytest.raises(InputError, match=r"'fc.weight' \[2, 3\] has a Gram matrix \[2, 2\]"):
        RegMean()(None, [np.ones((2, 3))], "fc.weight", [np.ones((2, 2))])


def test_gram_matrices_are_of_the_inputs_of_each_linear_layer() -> None:
    model, batches = mlp(0), samples(0)
    model.train()
    found = collect.gram(model, batches)
    assert model.training
    inputs = torch.cat(batches)
    hidden = model[:2](inputs)
    assert list(found) == ["0.weight", "2.weight"]
    torch.testing.assert_close(found["0.weight"], inputs.T @ inputs / len(inputs))
    torch.testing.assert_close(found["2.weight"], (hidden.T @ hidden / len(inputs)).detach())
    # Sequences count every position.
    (token,) = collect.gram(nn.Sequential(nn.Linear(4, 2)).double(), [inputs.reshape(4, 10, 4)]).values()
    torch.testing.assert_close(token, found["0.weight"])
    with pytest.raises(InputError, match="no Gram matrices"):
        collect.gram(nn.ReLU(), batches)


def test_regmean_of_modules_matches_each_expert_better_than_the_average() -> None:
    experts, batches = [mlp(1), mlp(2)], [samples(1), samples(2)]
    grams = [collect.gram(e, b) for e, b in zip(experts, batches, strict=True)]
    merged = lifelong.merge("regmean", None, experts, statistics=grams, alpha=1.0)
    average = lifelong.merge("linear", None, experts)
    torch.testing.assert_close(merged[0].bias, average[0].bias)

    @torch.no_grad()
    def error(model: nn.Module, layer: int) -> float:
        # What a layer's weights make of the inputs that each expert gives it.
        total = 0.0
        for expert, own in zip(experts, batches, strict=True):
            inputs = expert[:layer](torch.cat(own))
            total += float((inputs @ (model[layer].weight - expert[layer].weight).T).square().sum())
        return total

    for layer in (0, 2):
        assert error(merged, layer) < 0.9 * error(average, layer)


def layer_by_layer(experts: list[nn.Sequential], batches: list[list[Tensor]]) -> dict[str, Any]:
    """RegMean++ of `mlp`, spelled out: the second layer's inputs go through the merged first layer."""
    merged: dict[str, Any] = {
        name: sum(dict(e.named_parameters())[name] for e in experts).detach() / 2 for name in tree.weights(experts[0])
    }
    inputs = [torch.cat(own) for own in batches]
    for layer in (0, 2):
        grams = []
        for x in inputs:
            gram = x.T @ x / len(x)
            grams.append(0.9 * gram + 0.1 * torch.diag(gram.diag()))
        total = sum(e[layer].weight @ g for e, g in zip(experts, grams, strict=True))
        merged[f"{layer}.weight"] = (total @ torch.linalg.inv(sum(grams))).detach()
        inputs = [(x @ merged["0.weight"].T + merged["0.bias"]).relu() for x in inputs] if layer == 0 else inputs
    return merged


def test_regmean_plus_plus_feeds_each_layer_by_the_merge() -> None:
    experts, batches = [mlp(1), mlp(2)], [samples(1), samples(2)]
    template = mlp(5)
    before = tree.snapshot(tree.weights(template))
    merged = collect.regmean_plus_plus(template, [tree.weights(e) for e in experts], batches)
    for name, expected in layer_by_layer(experts, batches).items():
        torch.testing.assert_close(merged[name], expected, rtol=1e-6, atol=1e-6)
    for name, tensor in tree.weights(template).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_regmean_plus_plus_leaves_buffers_that_no_checkpoint_holds() -> None:
    experts, batches = [mlp(1), mlp(2)], [samples(1), samples(2)]
    template = mlp(5)
    template.register_buffer("positions", torch.arange(4), persistent=False)
    trees = [dict(each.state_dict()) for each in experts]
    merged = collect.regmean_plus_plus(template, trees, batches)
    plain = collect.regmean_plus_plus(mlp(5), trees, batches)
    assert set(merged) == set(plain)
    torch.testing.assert_close(merged["2.weight"], plain["2.weight"])
    with pytest.raises(InputError, match=r"3\.weight"):
        collect.regmean_plus_plus(mlp(5), [{**each, "3.weight": torch.ones(2)} for each in trees], batches)


def test_regmean_plus_plus_with_one_block_is_regmean() -> None:
    experts, batches = [mlp(1), mlp(2)], [samples(1), samples(2)]
    wrapped = [nn.Sequential(e) for e in experts]
    grams = [collect.gram(e, b) for e, b in zip(wrapped, batches, strict=True)]
    plain = lifelong.merge("regmean", None, wrapped, statistics=grams)
    merged = collect.regmean_plus_plus(nn.Sequential(mlp(5)), [*map(tree.weights, wrapped)], batches, blocks=["0"])
    for name, tensor in tree.weights(plain).items():
        torch.testing.assert_close(merged[name], tensor.detach())
    with pytest.raises(InputError, match="no block 'encoder'"):
        collect.regmean_plus_plus(mlp(0), [*map(tree.weights, experts)], batches, blocks=["encoder"])


def test_fisher_of_modules() -> None:
    experts = [mlp(1), mlp(2)]
    importances = [
        curvature.fisher(e, e, [(x, torch.zeros(len(x), dtype=torch.long)) for x in samples(s)])
        for s, e in enumerate(experts)
    ]
    merged = lifelong.merge("fisher", None, experts, statistics=importances)
    for name, tensor in merged.named_parameters():
        (a, f), (b, g) = (
            (dict(e.named_parameters())[name], i[name]) for e, i in zip(experts, importances, strict=True)
        )
        expected = torch.where(f + g > 0, (f * a + g * b) / (f + g), (a + b) / 2)
        torch.testing.assert_close(tensor, expected)


def test_statistics_that_are_missing_or_too_many() -> None:
    experts = [{"a": np.ones(2)}, {"a": np.ones(2)}]
    with pytest.raises(InputError, match="rule fisher needs the fisher statistics of each expert"):
        lifelong.merge("fisher", None, experts)
    with pytest.raises(InputError, match="1 statistics are given for 2 experts"):
        lifelong.merge("fisher", None, experts, statistics=[{"a": np.ones(2)}])
    with pytest.raises(InputError, match=r"tensor 'a': experts 1 \(from 0\) have no fisher statistics"):
        lifelong.merge("fisher", None, experts, statistics=[{"a": np.ones(2)}, {}])
    with pytest.raises(InputError, match="the rule has no use for them"):
        lifelong.merge("linear", None, experts, statistics=[{}, {}])


def on_disk(folder: Path, model: nn.Module) -> None:
    folder.mkdir()
    save_file(dict(model.state_dict()), folder / "model.safetensors")


def run(method: str, folder: Path, out: str) -> dict[str, Tensor]:
    recipe = MergeRecipe.model_validate({"merge_method": method, "models": [{"model": "one"}, {"model": "two"}]})
    for _ in engine.merge(plan(recipe, folder), folder / out, threads=1, shard_bytes=1 << 30):
        pass
    return load_file(folder / out / "model.safetensors")


def gram_of(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    return collect.gram(model, batches)


def fisher_of(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    return curvature.fisher(model, model, [(x, torch.zeros(len(x), dtype=torch.long)) for x in batches])


@pytest.mark.parametrize(("method", "kind", "made"), [("regmean", "gram", gram_of), ("fisher", "fisher", fisher_of)])
def test_streamed_equals_in_memory(tmp_path: Path, method: str, kind: str, made: Callable[..., Any]) -> None:
    experts, batches = [mlp(1), mlp(2)], [samples(1), samples(2)]
    known = [made(e, b) for e, b in zip(experts, batches, strict=True)]
    for name, expert in zip(("one", "two"), experts, strict=True):
        on_disk(tmp_path / name, expert)
    with pytest.raises(InputError, match=f"one has no {kind} statistics"):
        run(method, tmp_path, "out")
    for name, each in zip(("one", "two"), known, strict=True):
        assert collect.save(tmp_path / name, kind, each) == tmp_path / name / "statistics" / f"{kind}.safetensors"
    streamed = run(method, tmp_path, "out")
    merged = lifelong.merge(method, None, [dict(e.state_dict()) for e in experts], statistics=known)
    for name, tensor in merged.items():
        torch.testing.assert_close(streamed[name], tensor, rtol=1e-9, atol=1e-9)
    manifest = json.loads((tmp_path / "out" / engine.MANIFEST).read_text())
    assert f"one ({kind})" in manifest["tensors"]["0.weight"]["sources"]


def test_where_statistics_lie() -> None:
    assert path_of(Path("a/model"), "gram") == Path("a/model/statistics/gram.safetensors")
    assert path_of(Path("a/one.safetensors"), "gram") == Path("a/one.gram.safetensors")
