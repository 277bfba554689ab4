"""Merge rules: against slow references, and what all of them owe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from merging.models import read, tensors, write
from reference import merging as reference

import lifelong
from lifelong import settings
from lifelong.errors import InputError
from lifelong.merging import engine, planning
from lifelong.merging.draws import LEVELS, draws
from lifelong.merging.in_memory import Held
from lifelong.merging.quantile import cuts
from lifelong.merging.recipe import parsed
from lifelong.merging.rule import BLOCK, Rule, Site, Stack
from lifelong.merging.rules import RULES
from lifelong.merging.work import elsewhere

Numbers = np.ndarray[Any, Any]
NAME = reference.NAME

# The settings that each rule is tried with, the ones per expert for three experts.
CASES: dict[str, list[dict[str, Any]]] = {
    "linear": [{}, {"weight": (1.0, 0.5, 2.0)}, {"weight": (1.0, 0.5, 2.0), "normalize": False}],
    "interpolation": [{}, {"t": 0.0}, {"t": 1.0}, {"t": 1.25}],
    "passthrough": [{}, {"scale": 0.5}],
    "slerp": [{}, {"t": 0.0}, {"t": 0.25}, {"t": 1.0}],
    "nuslerp": [{}, {"weight": (1.0, 3.0)}, {"flatten": False}, {"flatten": False, "row_wise": True}],
    "multislerp": [{}, {"weight": (1.0, 0.5, 2.0)}],
    "karcher": [{"max_iter": 100, "tol": 1e-9}],
    "task_arithmetic": [{}, {"weight": (1.0, -0.5, 2.0), "scale": 0.3}, {"weight": (1.0, 0.5, 2.0), "normalize": True}],
    "layer_wise": [{}, {"coefficients": {"layers.0.": 1.0, "layers.1.": (0.5, 0.25, -1.0), "*": 0.0}}],
    "ties": [
        {},
        {"density": 0.2},
        {"density": (0.2, 0.5, 1.0), "weight": (1.0, 0.5, 2.0), "scale": 0.5},
        {"density": 0.0},
        {"density": 0.3, "normalize": False, "rescale": True},
        {"density": 0.5, "weight": (1.0, -0.5, 2.0)},
        {"density": 0.3, "rescale": True, "rescale_norm": "l2"},
    ],
    "dare_linear": [
        {"density": 0.3},
        {"density": (0.3, 1.0, 0.7), "weight": (1.0, 0.5, 2.0), "normalize": True, "seed": 7},
        {"density": 0.3, "rescale": False},
        {"density": 0.3, "rescale_norm": "l1"},
    ],
    "dare_ties": [{"density": 0.5, "weight": (1.0, 0.5, 2.0)}, {"density": 0.5, "normalize": True}],
    "della": [{"density": 0.5}, {"density": (0.3, 0.5, 1.0), "epsilon": (0.1, 0.2, 0.15), "weight": (1.0, 0.5, 2.0)}],
    "della_linear": [
        {"density": 0.5, "rescale": False},
        {"density": 0.5, "rescale_norm": "expectation"},
        {"density": 0.5, "rescale_norm": "linf"},
    ],
    "breadcrumbs": [{}, {"density": 0.5}, {"density": (0.9, 0.5, 0.3), "gamma": (0.2, 0.1, 0.0)}],
    "breadcrumbs_ties": [{"density": 0.5, "gamma": 0.1, "weight": (1.0, 0.5, 2.0)}],
    "sce": [{}, {"select_topk": 0.3}, {"select_topk": 0.0}],
    "sign_consensus": [{}, {"agreement": 0.6, "weight": (1.0, 0.5, 2.0), "scale": 0.5}],
    "magmax": [{}, {"scale": 1.0}],
    "maxabs": [{}],
    "randmix": [{}, {"seed": 3, "scale": 0.5}],
    "model_stock": [{}, {"filter_wise": True}],
    "nearswap": [{}, {"t": 0.05}, {"t": 0.0}],
    "arcee_fusion": [{}],
}
FLAT = [(name, case) for name, cases in CASES.items() for case in cases]
IDS = [f"{name}-{index}" for name, cases in CASES.items() for index in range(len(cases))]
SHAPES = [(), (1,), (7,), (6, 5), (3, 2, 5), (2, 1)]


def operands(shape: tuple[int, ...], count: int, seed: int = 0) -> tuple[Numbers, list[Numbers]]:
    """Return a base and experts whose differences float32 holds exactly, so that no rounding decides an election."""
    random = np.random.default_rng(seed)

    def grid(spread: float) -> Numbers:
        return np.asarray(np.round(random.standard_normal(shape) * spread * 4096) / 4096, np.float32)

    base = grid(1.0)
    return base, [np.asarray(base + grid(0.1), np.float32) for _ in range(count)]


def made(name: str, case: dict[str, Any], base: Any, experts: list[Any]) -> Any:
    rule = RULES[name](**case)
    return rule(base if rule.takes_base else None, experts, NAME)


def experts_of(name: str) -> int:
    return RULES[name].most or 3


def expected(name: str, case: dict[str, Any], base: Numbers, experts: list[Numbers]) -> Numbers:
    known = {key: value for key, value in case.items() if key not in ("max_iter", "tol")}
    origin = np.asarray(base, float) if RULES[name].takes_base else None
    return np.asarray(getattr(reference, name)(origin, [np.asarray(each, float) for each in experts], **known))


@pytest.mark.parametrize(("name", "case"), FLAT, ids=IDS)
def test_small_tensors_are_the_reference(name: str, case: dict[str, Any]) -> None:
    for seed, shape in enumerate(SHAPES):
        base, experts = operands(shape, experts_of(name), seed)
        merged = made(name, case, base, experts)
        assert merged.dtype == np.float32
        assert merged.shape == shape
        np.testing.assert_allclose(merged, expected(name, case, base, experts), rtol=2e-5, atol=2e-6, err_msg=shape)


# The last case of each rule, that is the one furthest from the defaults.
@pytest.mark.parametrize(("name", "case"), [(name, cases[-1]) for name, cases in CASES.items()], ids=list(CASES))
def test_blocks_are_the_whole(name: str, case: dict[str, Any]) -> None:
    base, experts = operands((331, 401), experts_of(name), 1)
    assert base.size > BLOCK
    np.testing.assert_allclose(
        made(name, case, base, experts), expected(name, case, base, experts), rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize(("name", "case"), FLAT, ids=IDS)
def test_numpy_and_torch_give_the_same_bits(name: str, case: dict[str, Any]) -> None:
    for shape in [(), (0,), (0, 3), (6, 5), (257, 520)]:
        base, experts = operands(shape, experts_of(name), 2)
        held = [torch.from_numpy(each.copy()) for each in (base, *experts)]
        merged = made(name, case, held[0], held[1:])
        np.testing.assert_array_equal(merged.numpy(), made(name, case, base, experts))
        for before, after in zip((base, *experts), held, strict=True):
            np.testing.assert_array_equal(before, after.numpy())


@pytest.mark.parametrize("name", CASES)
def test_formats_stay(name: str) -> None:
    base, experts = operands((6, 5), experts_of(name), 3)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        held = [torch.from_numpy(each).to(dtype) for each in (base, *experts)]
        merged = made(name, CASES[name][0], held[0], held[1:])
        assert merged.dtype == dtype
        if dtype == torch.float64:
            want = expected(name, CASES[name][0], base, experts)
            np.testing.assert_allclose(merged.numpy(), want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("name", "case"), FLAT, ids=IDS)
@hypothesis_settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), shape=st.sampled_from([(), (5,), (4, 6), (3, 2, 5)]))
def test_experts_that_are_the_base_give_it_back(name: str, case: dict[str, Any], seed: int, shape: Any) -> None:
    base, _ = operands(shape, 0, seed)
    if name == "passthrough" or not case.get("normalize", True):
        return
    merged = made(name, case, base, [base.copy() for _ in range(experts_of(name))])
    np.testing.assert_allclose(merged, base, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "case"), [pair for pair in FLAT if RULES[pair[0]].symmetric and RULES[pair[0]].most is None]
)
@hypothesis_settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(3)), seed=st.integers(0, 1000))
def test_order_does_not_matter(name: str, case: dict[str, Any], order: list[int], seed: int) -> None:
    base, experts = operands((4, 6), 3, seed)
    mixed = {
        key: tuple(value[t] for t in order) if isinstance(value, tuple) else value
        for key, value in case.items()
        if key != "coefficients"
    }
    rest = {key: value for key, value in case.items() if key != "coefficients"}
    np.testing.assert_allclose(
        made(name, rest, base, experts), made(name, mixed, base, [experts[t] for t in order]), rtol=1e-5, atol=1e-6
    )


# Those two compare with lengths that do not scale: a distance, and exponentials.
@pytest.mark.parametrize(("name", "case"), [pair for pair in FLAT if pair[0] not in ("nearswap", "arcee_fusion")])
@hypothesis_settings(max_examples=5, deadline=None)
@given(power=st.integers(-12, 12), seed=st.integers(0, 1000))
def test_the_merge_scales_with_the_models(name: str, case: dict[str, Any], power: int, seed: int) -> None:
    base, experts = operands((4, 6), experts_of(name), seed)
    scale = np.float32(2.0**power)
    merged = made(name, case, base * scale, [each * scale for each in experts])
    np.testing.assert_allclose(merged / scale, made(name, case, base, experts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear", "randmix"])
def test_draws_hang_on_seed_and_name_alone(name: str) -> None:
    base, experts = operands((40, 50), 3)
    case = {} if name == "randmix" else {"density": 0.5}
    first = RULES[name](**case)(base, experts, "a")
    np.testing.assert_array_equal(first, RULES[name](**case)(base, experts, "a"))
    assert (first != RULES[name](**case)(base, experts, "b")).mean() > 0.3
    assert (first != RULES[name](**case, seed=1)(base, experts, "a")).mean() > 0.3


def test_draws_are_uniform_and_apart() -> None:
    """A chi-square of 256 classes lies within five deviations; draws of other places are not correlated."""
    count = 1 << 16
    found = [draws(0, Site("w", start), expert, count) for start in (0, BLOCK) for expert in (0, 1)]
    for each in found:
        assert each.max() < LEVELS
        heights = np.bincount(each // 256, minlength=256)
        chi_square = ((heights - count / 256) ** 2 / (count / 256)).sum()
        assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
    correlations = np.corrcoef(np.array(found, float)) - np.eye(len(found))
    assert np.abs(correlations).max() < 5 / np.sqrt(count)


def test_random_experts_are_equally_likely() -> None:
    base = np.zeros(200_000, np.float32)
    merged = RULES["randmix"]()(base, [base + place for place in range(5)], NAME)
    shares = np.bincount(merged.astype(int), minlength=5) / base.size
    assert shares == pytest.approx([0.2] * 5, abs=5 * np.sqrt(0.2 * 0.8 / base.size))


def test_dropping_keeps_the_share_and_the_mean() -> None:
    base = np.zeros(200_000, np.float32)
    merged = RULES["dare_linear"](density=0.2)(base, [base + 1], NAME)
    kept = (merged != 0).mean()
    assert kept == pytest.approx(0.2, abs=5 * np.sqrt(0.2 * 0.8 / base.size))
    assert np.unique(merged) == pytest.approx([0, 5], rel=1e-4)


def test_larger_numbers_of_a_row_are_kept_more_often() -> None:
    base = np.zeros((2000, 10), np.float32)
    expert = np.tile(np.arange(1, 11, dtype=np.float32), (2000, 1))
    merged = RULES["della_linear"](density=0.5, epsilon=0.3, rescale=False)(base, [expert], NAME)
    wanted = 0.2 + 0.6 * np.arange(10) / 9
    np.testing.assert_allclose((merged != 0).mean(axis=0), wanted, atol=5 * 0.5 / np.sqrt(2000))


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_rescaling_restores_the_norm(norm: str) -> None:
    base, (expert,) = operands((331, 401), 1)
    merged = RULES["dare_linear"](density=0.1, rescale_norm=norm)(base * 0, [expert - base], NAME)
    order = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
    before = np.linalg.norm((expert - base).reshape(-1), order)
    assert np.linalg.norm(merged.reshape(-1), order) == pytest.approx(before, rel=1e-5)


def test_slerp_keeps_to_the_sphere() -> None:
    base, experts = np.array([3.0, 0.0], np.float32), [np.array([0.0, 3.0], np.float32)]
    for t in (0.0, 1 / 3, 0.5, 1.0):
        want = [3 * np.cos(t * np.pi / 2), 3 * np.sin(t * np.pi / 2)]
        np.testing.assert_allclose(RULES["slerp"](t=t)(base, experts), want, atol=1e-6)


@pytest.mark.parametrize("name", ["nuslerp", "multislerp", "karcher"])
def test_spherical_means_of_orthogonal_vectors(name: str) -> None:
    experts = [np.array([2.0, 0.0], np.float32), np.array([0.0, 2.0], np.float32)]
    np.testing.assert_allclose(RULES[name]()(None, experts), [np.sqrt(2)] * 2, rtol=1e-6)


def test_zeros_have_no_direction() -> None:
    zero, other = np.zeros(4, np.float32), np.array([0, 1, 2, 2], np.float32)
    np.testing.assert_allclose(RULES["karcher"]()(None, [zero, other, other]), other * 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(RULES["slerp"](t=1 / 3)(zero, [other]), other / 2, rtol=1e-6)
    for name in ("slerp", "nuslerp", "multislerp", "karcher", "model_stock"):
        count = RULES[name].most or 2
        np.testing.assert_array_equal(made(name, {}, zero, [zero.copy() for _ in range(count)]), zero)


def test_model_stock_of_orthogonal_and_of_equal_task_vectors() -> None:
    base, one, two = np.zeros(2, np.float32), np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    rule = RULES["model_stock"]()
    np.testing.assert_array_equal(rule(base, [one, two]), base)
    np.testing.assert_allclose(rule(base, [one, one]), one)
    np.testing.assert_array_equal(rule(base, [one, -one]), base)


def test_directions_that_cancel_are_refused_or_added() -> None:
    one = np.array([1.0, 0.0], np.float32)
    np.testing.assert_allclose(RULES["multislerp"]()(None, [one, -3 * one]), -one)
    turned = [np.array([np.cos(a), np.sin(a)], np.float64) for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    with pytest.raises(InputError, match=r"multislerp: in 'w' the weighted directions cancel"):
        RULES["multislerp"]()(None, turned, "w")


def test_more_experts_agree_than_a_byte_counts() -> None:
    base = np.zeros(3, np.float32)
    experts = [np.array([2, -2, 2 if index % 3 else -1], np.float32) for index in range(300)]
    np.testing.assert_allclose(RULES["ties"]()(base, experts), [2, -2, 2], rtol=1e-6)


def test_trimming_over_the_model() -> None:
    """One cut for all tensors: that of them laid one behind the other."""
    base = {f"w{index}": operands((30, 10 + index), 0, index)[0] for index in range(3)}
    random = np.random.default_rng(5)
    experts = [
        {
            name: each + np.float32(10.0**-index) * random.standard_normal(each.shape).astype(np.float32)
            for index, (name, each) in enumerate(base.items())
        }
        for _ in range(2)
    ]
    merged = lifelong.merge("ties", base, experts, density=0.2, trim="model")

    def joined(tree: dict[str, Numbers]) -> Numbers:
        return np.concatenate([each.reshape(-1) for each in tree.values()])

    np.testing.assert_array_equal(
        joined(merged), RULES["ties"](density=0.2)(joined(base), [joined(each) for each in experts])
    )
    # Most of what is kept is in the tensor that moved farthest.
    assert (merged["w0"] != base["w0"]).mean() > 0.5
    assert (merged["w2"] != base["w2"]).mean() < 0.01


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three experts on disk; one tensor is larger than a block."""
    folder = tmp_path_factory.mktemp("models")
    base = tensors(0, dtype="F32", rows=5600)
    write(folder / "base", base)
    for index, name in enumerate("abc"):
        write(folder / name, tensors(index + 1, base, dtype="F32", rows=5600))
    return folder


@pytest.mark.parametrize("name", [*CASES, "ties over the model"])
def test_streamed_is_in_memory(name: str, models: Path, tmp_path: Path) -> None:
    rule, _, over = name.partition(" ")
    parameters: dict[str, Any] = {"trim": "model"} if over else {}
    if "density" in RULES[rule].per_expert:
        parameters["density"] = 0.3
    names = list("abc")[: experts_of(rule)]
    values = {"merge_method": rule, "base_model": "base", "models": [{"model": each} for each in names]}
    plan = planning.plan(parsed({**values, "parameters": parameters}), models)
    list(engine.merge(plan, tmp_path / "out", threads=2, shard_bytes=10**9))
    found = [read(models / each) for each in ("base", *names)]
    wanted = lifelong.merge(rule, found[0] if RULES[rule].takes_base else None, found[1:], **parameters)
    for key, each in read(tmp_path / "out").items():
        np.testing.assert_array_equal(each, wanted[key])
    # Rules read in pieces of their own; what is recorded of the inputs must not hang on it.
    manifest = json.loads((tmp_path / "out" / engine.MANIFEST).read_text())["tensors"]["lm_head.weight"]["sources"]
    assert manifest["a"] == digest(models, "a", tmp_path)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if elsewhere(rule())])
def test_rules_of_whole_matrices_compute_where_they_are_told(name: str, models: Path, tmp_path: Path) -> None:
    values = {"merge_method": name, "base_model": "base"}
    named = {**values, "models": [{"model": each} for each in list("abc")[: experts_of(name)]]}
    plan = planning.plan(parsed(named), models)
    list(engine.merge(plan, tmp_path / "numpy", shard_bytes=10**9))
    list(engine.merge(plan, tmp_path / "torch", shard_bytes=10**9, device="cpu"))
    with_numpy, with_torch = (read(tmp_path / each) for each in ("numpy", "torch"))
    for key, each in with_numpy.items():
        np.testing.assert_allclose(with_torch[key], each, atol=1e-4)
    assert engine.fingerprint(plan, 10**9, "cpu") != engine.fingerprint(plan, 10**9)


def digest(models: Path, model: str, tmp_path: Path) -> str:
    plan = planning.plan(parsed({"merge_method": "linear", "models": [{"model": model}]}), models)
    list(engine.merge(plan, tmp_path / "copy", shard_bytes=10**9))
    sources = json.loads((tmp_path / "copy" / engine.MANIFEST).read_text())["tensors"]["lm_head.weight"]["sources"]
    return str(sources[model])


# What mergekit's methods take, and its defaults; None: it has none, and asks for a value.
FAMILY = {"weight": None, "density": 1.0, "int8_mask": False, "lambda": 1.0}
MERGEKIT: dict[str, dict[str, Any]] = {
    "linear": {"weight": None, "normalize": True},
    "slerp": {"t": None},
    "nuslerp": {"weight": None, "nuslerp_row_wise": False, "nuslerp_flatten": True},
    "multislerp": {"weight": None, "normalize_weights": True, "eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5},
    "task_arithmetic": {**FAMILY, "normalize": False, "rescale": False},
    "ties": {**FAMILY, "normalize": True, "rescale": False},
    "dare_linear": {**FAMILY, "normalize": False, "rescale": True},
    "dare_ties": {**FAMILY, "normalize": False, "rescale": True},
    "della": {**FAMILY, "normalize": True, "rescale": True, "epsilon": 0.15},
    "della_linear": {**FAMILY, "normalize": False, "rescale": True, "epsilon": 0.15},
    "breadcrumbs": {**FAMILY, "normalize": False, "rescale": False, "gamma": 0.01},
    "breadcrumbs_ties": {**FAMILY, "normalize": False, "rescale": False, "gamma": 0.01},
    "sce": {"int8_mask": False, "select_topk": 1.0},
    "model_stock": {"filter_wise": False},
    "nearswap": {"t": None},
    "passthrough": {"scale": None},
    "arcee_fusion": {},
}


@pytest.mark.parametrize("name", MERGEKIT)
def test_recipes_of_mergekit_mean_what_they_mean_there(name: str) -> None:
    rule = RULES[name]
    declared = {field.name: settings.default_of(field) for field in settings.fields(rule)}
    for word, default in MERGEKIT[name].items():
        if word in rule.ignored:
            assert word not in declared
            continue
        assert default is None or declared[rule.spelled.get(word, word)] == default


@pytest.mark.parametrize(
    ("name", "case", "message"),
    [
        ("ties", {"rescale": True, "rescale_norm": "expectation"}, "goes with random dropping"),
        ("ties", {"density": (0.1, 0.2)}, "density has 2 numbers for 3 experts"),
        ("dare_linear", {"weight": (1.0, -1.0, 0.0), "normalize": True}, "rule dare_linear: the weights sum to zero"),
        ("task_arithmetic", {"weight": (1.0, -1.0, 0.0), "normalize": True}, "the weights sum to zero"),
        ("multislerp", {"weight": (1.0, -1.0, 0.0)}, "the weights sum to zero"),
        ("della", {"density": 0.1}, "density 0.1 with epsilon 0.15 gives probabilities outside 0 to 1"),
        ("slerp", {}, "takes exactly 1 models beside the base, and 3 are given"),
        ("nuslerp", {}, "takes exactly 2 models"),
        ("layer_wise", {"coefficients": {"*": (0.1, 0.2)}}, "2 coefficients for 3 experts"),
        ("layer_wise", {"coefficients": {"head": 0.1}}, "no pattern fits tensor"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name: str, case: dict[str, Any], message: str) -> None:
    base, experts = operands((4,), 3)
    with pytest.raises(InputError, match=message):
        made(name, case, base, experts)


@pytest.mark.parametrize("name", ["task_arithmetic", "dare_linear", "breadcrumbs", "ties"])
def test_no_weight_at_all_leaves_the_base(name: str) -> None:
    """A filter may give the tensors of some layers the weight 0 in every expert."""
    base, experts = operands((4, 5), 3)
    np.testing.assert_array_equal(made(name, {"weight": 0.0, "normalize": True}, base, experts), base)


def test_coefficients_of_layers_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "coefficients.json"
    path.write_text(json.dumps({"layers.1.": [0.5, 0.25], "*": 1}))
    rule = settings.build(RULES["layer_wise"], {"coefficients": str(path)}, "rule layer_wise")
    base, experts = np.zeros(2, np.float32), [np.ones(2, np.float32), np.full(2, 2, np.float32)]
    np.testing.assert_array_equal(rule(base, experts, "layers.1.weight"), [1, 1])
    np.testing.assert_array_equal(rule(base, experts, "layers.11.weight"), [3, 3])
    path.write_text("[1]")
    for text, message in ((str(path), "must be JSON that maps patterns"), ("nowhere.json", "No such file")):
        with pytest.raises(InputError, match=message):
            settings.build(RULES["layer_wise"], {"coefficients": text}, "rule layer_wise")


def test_agreement_counts_heads() -> None:
    base = np.zeros(4, np.float32)
    experts = [np.array(each, np.float32) for each in ([1, 1, 1, 0], [2, 2, -9, 0], [3, -9, 0, 5])]
    np.testing.assert_allclose(RULES["sign_consensus"]()(base, experts), [2, 0, 0, 0])
    np.testing.assert_allclose(RULES["sign_consensus"](agreement=0.6)(base, experts), [2, 1.5, 0, 0])


@hypothesis_settings(max_examples=20, deadline=None)
@given(
    size=st.integers(1, 3 * BLOCK),
    share=st.floats(0, 1),
    kind=st.sampled_from(["normal", "sorted", "spike", "few", "zeros"]),
    seed=st.integers(0, 1000),
)
def test_the_cut_is_exact_whatever_the_sample_says(size: int, share: float, kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.abs(random.standard_normal(size)).astype(np.float32)
    if kind == "sorted":
        values.sort()
    elif kind == "spike":
        # All but a few numbers, in one place, are 0: a sample sees none or nothing else.
        values[np.arange(size) % 997 > 3] = 0
    elif kind == "few":
        values = np.round(values)
    elif kind == "zeros":
        values *= 0
    k = max(1, round(share * size))
    stack = Stack("w", None, [Held(values)])
    parts = [Stack("a", None, [Held(values[: size // 3])]), Stack("b", None, [Held(values[size // 3 :])])]
    want = float(np.sort(values)[size - k])
    for given_stack in (stack, [part for part in parts if part.size]):
        assert cuts(given_stack, lambda base, experts: [np.abs(each) for each in experts], [k]) == [want]
    assert cuts(stack, lambda base, experts: experts * 2, [0, size + 1]) == [np.inf, 0.0]


def test_every_rule_of_this_file_is_registered() -> None:
    assert set(MERGEKIT) <= set(CASES) <= set(RULES)
    assert all(issubclass(RULES[name], Rule) for name in CASES)
