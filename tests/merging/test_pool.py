"""A pool of experts on disk: what goes in comes out, what does not belong is refused, what is lost is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lifelong
from lifelong import tree
from lifelong.errors import InputError, StateError
from lifelong.merging.adaptation import adapt
from lifelong.merging.pool import MANIFEST, Pool, fingerprint
from lifelong.merging.stored import Format, pack, unpack
from lifelong.tree import Params

SHAPES = {"one.weight": (20, 30), "one.bias": (20,), "two.weight": (3, 20)}


def weights(seed: int, base: Params | None = None) -> Params:
    drawn = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(shape, generator=drawn) for name, shape in SHAPES.items()}
    counter = {"steps": torch.tensor(seed)}
    return {**(noise if base is None else {name: base[name] + 0.1 * each for name, each in noise.items()}), **counter}


BASE = weights(0)
EXPERTS = {name: weights(seed, BASE) for seed, name in enumerate("abc", 1)}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    made = Pool.create(tmp_path / "pool", BASE)
    for name, expert in EXPERTS.items():
        made.add(name, expert, base=BASE, task={"name": f"task {name}"})
    return made


def test_experts_come_back_from_disk(pool: Pool) -> None:
    again = lifelong.Pool(pool.folder)
    assert list(again.members) == ["a", "b", "c"]
    assert again.members["b"].task == {"name": "task b"}
    for name, expert in EXPERTS.items():
        torch.testing.assert_close({**again.expert(name), "steps": expert["steps"]}, expert)
    assert again.expert("a")["steps"] == BASE["steps"]


@pytest.mark.parametrize("names", [None, ["c", "a"]])
def test_any_choice_is_merged_by_any_rule(pool: Pool, names: list[str] | None) -> None:
    chosen = [pool.expert(name) for name in names or "abc"]
    torch.testing.assert_close(
        pool.merge("ties", names, density=0.3), lifelong.merge("ties", BASE, chosen, density=0.3)
    )
    mean = torch.stack([EXPERTS[name]["one.weight"] for name in names or "abc"]).mean(0)
    torch.testing.assert_close(pool.merge("linear", names)["one.weight"], mean)


class Tied(nn.Module):
    """Two names for one weight, and a buffer that is not saved, as language models have."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.outer = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.outer.weight = self.inner.weight
        self.register_buffer("places", torch.arange(7), persistent=False)


def test_a_merge_of_modules_is_loaded_again(tmp_path: Path) -> None:
    made, experts = Pool.create(tmp_path / "tied", Tied(0)), [Tied(1), Tied(2)]
    for number, expert in enumerate(experts):
        made.add(f"expert {number}", expert, base=Tied(0))
    answer = Tied(3)
    answer.load_state_dict(made.merge("linear"))
    torch.testing.assert_close(answer.outer.weight, (experts[0].inner.weight + experts[1].inner.weight) / 2)
    assert answer.outer.weight is answer.inner.weight


def test_interpolation_goes_from_one_expert_to_the_other(pool: Pool) -> None:
    found = pool.interpolate("a", "b", 0.25)
    expected = 0.75 * EXPERTS["a"]["two.weight"] + 0.25 * EXPERTS["b"]["two.weight"]
    torch.testing.assert_close(found["two.weight"], expected)


def test_removing_forgets_the_file_too(pool: Pool) -> None:
    pool.remove("b")
    assert list(Pool(pool.folder).members) == ["a", "c"]
    assert not list(pool.folder.glob("b.*"))


def test_replacing_leaves_one_of_the_name(pool: Pool) -> None:
    with pytest.raises(InputError, match="has an expert 'a' already"):
        pool.add("a", EXPERTS["b"])
    pool.add("a", EXPERTS["b"], replace=True)
    torch.testing.assert_close(pool.expert("a")["one.bias"], EXPERTS["b"]["one.bias"])
    assert len(list(pool.folder.glob("a.*"))) == 1


def relative(change: Params, stored: Params) -> float:
    return float(tree.norm(tree.sub(change, stored)) / tree.norm(change))


def test_what_storing_costs_is_measured_and_written_down(pool: Pool) -> None:
    change = {name: EXPERTS["a"][name] - BASE[name] for name in SHAPES}
    pool.add("half", EXPERTS["a"], format="bf16")
    pool.add("tenth", EXPERTS["a"], format="sparse", density=0.1)
    pool.add("all", EXPERTS["a"], format="sparse", density=1.0)
    members = Pool(pool.folder).members
    assert members["a"].error == members["all"].error == 0
    for name in ("half", "tenth"):
        assert members[name].error == pytest.approx(relative(change, pool.vector(name)), rel=1e-5)
    assert 0 < members["half"].error < 2**-8
    # The largest tenth of normal numbers has some 44 % of their squares.
    assert members["tenth"].error == pytest.approx(0.75, abs=0.05)
    assert members["tenth"].bytes < members["half"].bytes < members["a"].bytes


def test_sparse_keeps_the_largest_numbers_of_each_tensor() -> None:
    change = {"w": torch.tensor([[0.1, -3.0, 0.0], [2.0, -0.5, 1.0]]), "none": torch.zeros(4), "empty": torch.zeros(0)}
    shapes = {name: tuple(each.shape) for name, each in change.items()}
    found = unpack(pack(change, "sparse", 0.5), shapes)
    assert found["w"].tolist() == [[0.0, -3.0, 0.0], [2.0, 0.0, 1.0]]
    assert not found["none"].any()
    assert found["empty"].shape == (0,)


def test_beyond_the_limit_the_least_useful_go(tmp_path: Path) -> None:
    room = Pool.create(tmp_path / "measure", BASE)
    room.add("a", EXPERTS["a"])
    pool = Pool.create(tmp_path / "pool", BASE, limit=3 * room.bytes + 100)
    mixture = {name: 0.5 * EXPERTS["a"][name] + 0.5 * EXPERTS["c"][name] for name in SHAPES} | {"steps": BASE["steps"]}
    assert pool.add("a", EXPERTS["a"]) == []
    pool.add("mixture", mixture)
    assert pool.add("b", EXPERTS["b"]) == []
    # Of a, c and their mixture each is made up for by the other two; b is not, and the newest stays.
    gone = pool.add("c", EXPERTS["c"])
    assert len(gone) == 1
    assert gone[0] in ("a", "mixture")
    assert set(Pool(pool.folder).members) == {"a", "mixture", "b", "c"} - set(gone)
    assert pool.bytes <= 3 * room.bytes + 100


def test_usefulness_is_the_distance_from_the_span_of_the_others(tmp_path: Path) -> None:
    pool = Pool.create(tmp_path / "pool", {"w": torch.zeros(3)})
    for name, vector in {"x": [3.0, 0, 0], "xy": [1.0, 2, 0], "z": [0.0, 0, 5]}.items():
        pool.add(name, {"w": torch.tensor(vector)})
    found = pool.usefulness()
    assert found["z"] == pytest.approx(5)
    assert found["xy"] == pytest.approx(2)
    assert found["x"] == pytest.approx(6 / 5**0.5)


def test_experts_are_chosen_by_the_features_of_their_tasks(pool: Pool) -> None:
    for name, prototype in {"left": [1.0, 0.1], "up": [0.0, 2.0], "right": [-1.0, 0.0]}.items():
        pool.add(name, EXPERTS["a"], prototype=torch.tensor(prototype))
    found = Pool(pool.folder).nearest(torch.tensor([0.5, 1.0]), count=2)
    assert [name for name, _ in found] == ["up", "left"]
    assert found[0][1] == pytest.approx(1 / 1.25**0.5)
    with pytest.raises(InputError, match="the prototype has 3 numbers, and those of the pool have"):
        pool.nearest(torch.zeros(3))


def test_what_does_not_belong_is_refused(pool: Pool) -> None:
    refusals = [
        ("d", EXPERTS["a"], {"base": weights(9)}, "expert d is of another base"),
        ("d", EXPERTS["a"], {"base": "0" * 32}, "expert d is of another base"),
        ("d", {"one.weight": BASE["one.weight"]}, {}, "expert d lacks 3 tensors of the base: one.bias"),
        ("d", {**BASE, "one.bias": torch.zeros(7)}, {}, r"tensor 'one.bias' is \[7\], and the base has \[20\]"),
        ("d", {**BASE, "one.bias": torch.full((20,), torch.nan)}, {}, "tensor 'one.bias' has numbers that are not fin"),
        ("../d", EXPERTS["a"], {}, "'../d' cannot name an expert"),
        ("d", EXPERTS["a"], {"format": "sparse", "density": 0.0}, "density = 0.0 must be above 0"),
        ("d", EXPERTS["a"], {"format": "spares"}, "unknown format 'spares', did you mean 'sparse'"),
    ]
    for name, expert, more, told in refusals:
        with pytest.raises(InputError, match=told):
            pool.add(name, expert, **more)
    with pytest.raises(InputError, match="unknown expert 'aa', did you mean 'a'"):
        pool.merge("linear", ["aa"])
    with pytest.raises(InputError, match="exists and is not empty"):
        Pool.create(pool.folder, BASE)
    with pytest.raises(InputError, match="is no pool"):
        Pool(pool.folder.parent)
    assert list(Pool(pool.folder).members) == ["a", "b", "c"]


def test_an_expert_that_no_room_is_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expert a takes .* bytes, and the pool .* may take 100"):
        Pool.create(tmp_path / "pool", BASE, limit=100).add("a", EXPERTS["a"])


def test_damage_is_told_of_with_its_file(pool: Pool) -> None:
    (file,) = pool.folder.glob("a.*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StateError, match=f"{file.name} does not have the content"):
        pool.expert("a")
    file.unlink()
    with pytest.raises(StateError, match=f"{file.name} cannot be read"):
        pool.expert("a")
    (pool.folder / MANIFEST).write_text("{}")
    with pytest.raises(StateError, match=r"pool\.json is damaged"):
        Pool(pool.folder)


def test_an_interrupted_add_leaves_the_pool_as_it_was(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((pool.folder / MANIFEST).read_text())

    def fails(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lifelong.merging.pool.write_json", fails)
    with pytest.raises(KeyboardInterrupt):
        pool.add("a", EXPERTS["b"], replace=True)
    assert json.loads((pool.folder / MANIFEST).read_text()) == before
    torch.testing.assert_close(Pool(pool.folder).expert("a")["one.bias"], EXPERTS["a"]["one.bias"])


def test_fingerprints_tell_names_shapes_formats_and_numbers_apart() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(4)},
        {"a": torch.zeros(2, 3), "c": torch.ones(4)},
        {"a": torch.zeros(2, 3).to(torch.int32), "b": torch.ones(4)},
        {"a": torch.zeros(2, 3), "b": torch.ones(4) * 2},
    ]
    assert len({fingerprint(each) for each in (base, *others)}) == 5
    assert fingerprint(dict(reversed(base.items()))) == fingerprint(base)


def test_adapting_fits_the_task_and_stays_near_where_it_is_told_to() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    merged = tree.snapshot(tree.weights(model))
    inputs, targets = torch.randn(12, 4), torch.arange(12) % 3

    def loss(found: Params) -> float:
        return float(F.cross_entropy(torch.func.functional_call(model, found, (inputs,)), targets))

    free = adapt(model, merged, [(inputs, targets)], epochs=50, learning_rate=0.01)
    held = adapt(model, merged, [(inputs, targets)], epochs=50, learning_rate=0.01, keep=10.0)
    assert loss(free) < loss(held) < loss(merged)
    assert tree.norm(tree.sub(held, merged)) < tree.norm(tree.sub(free, merged))
    torch.testing.assert_close(tree.weights(model), merged, rtol=0, atol=0)
    with pytest.raises(InputError, match="no tensor 'head'"):
        adapt(model, {"head": torch.zeros(1)}, [(inputs, targets)])
    with pytest.raises(InputError, match="at least one batch"):
        adapt(model, merged, [])


@pytest.mark.parametrize("rule", ["task_arithmetic", "magmax", "linear"])
@pytest.mark.parametrize("format", ["float32", "sparse"])
def test_statistics_of_batch_norm_are_averaged_and_count_for_nothing(tmp_path: Path, rule: str, format: Format) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"0.weight": torch.zeros(6), "1.running_mean": torch.zeros(3), "1.running_var": torch.full((3,), 10.0)}
    pool = Pool.create(tmp_path / "pool", base)
    experts = []
    for name in "abc":
        weights = {**base, "0.weight": torch.randn(6, generator=generator)}
        experts.append({**weights, "1.running_var": torch.rand(3, generator=generator)})
        pool.add(name, experts[-1], format=format, density=0.5)
    merged = pool.merge(rule)
    assert merged.keys() == base.keys()
    torch.testing.assert_close(
        merged["1.running_var"], torch.stack([each["1.running_var"] for each in experts]).mean(0)
    )
    for name, expert in zip("abc", experts, strict=True):
        assert pool.members[name].norm == pytest.approx(float(expert["0.weight"].norm()))
        assert pool.usefulness()[name] <= pool.members[name].norm * 1.0001
