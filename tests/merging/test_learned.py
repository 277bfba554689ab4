"""What is learned or measured on samples: AdaMerging, greedy soup, routing, batch normalisation after a merge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import lifelong
from lifelong import tree
from lifelong.errors import InputError
from lifelong.merging.batch_norm import reestimate
from lifelong.merging.learned import adamerging, entropy
from lifelong.merging.routing import Routed, prototypes
from lifelong.merging.rules.linear import Linear
from lifelong.merging.soup import greedy_soup


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def samples(seed: int, count: int = 24) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def family(experts: int = 2) -> tuple[nn.Sequential, dict[str, Tensor], list[dict[str, Tensor]]]:
    model = network()
    base = tree.snapshot(tree.weights(model))
    generator = torch.Generator().manual_seed(1)
    noisy = [
        {name: t + 0.5 * torch.randn(t.shape, generator=generator) for name, t in base.items()} for _ in range(experts)
    ]
    return model, base, noisy


def test_entropy_is_that_of_the_softmax() -> None:
    assert float(entropy(torch.zeros(4, 5))) == pytest.approx(torch.tensor(5.0).log().item())
    probability = torch.tensor([[0.5, 0.25, 0.25]])
    assert float(entropy(probability.log())) == pytest.approx(1.5 * torch.tensor(2.0).log().item())


@pytest.mark.parametrize(("per", "distinct"), [("task", 1), ("layer", 2), ("tensor", 4)])
def test_adamerging_lowers_the_entropy(per: Any, distinct: int) -> None:
    model, base, experts = family()
    model.train()
    before = tree.snapshot(tree.weights(model))
    batches = [[(samples(s), None)] for s in (1, 2)]
    learned = adamerging(model, base, experts, batches, per=per, steps=60, learning_rate=0.05)
    assert len(set(learned.coefficients.values())) == distinct
    assert learned.losses[-1] < 0.9 * learned.losses[0]
    # The first loss is that of the start, and the merge by the rules has the last but one step's loss or less.
    start = {n: t + 0.3 * sum(e[n] - t for e in experts) for n, t in base.items()}
    model.eval()
    first = sum(float(entropy(functional_call(model, start, (b[0][0],)))) for b in batches)
    assert learned.losses[0] == pytest.approx(first, rel=1e-5)
    merged = learned.merged(base, experts)
    last = sum(float(entropy(functional_call(model, merged, (b[0][0],)))) for b in batches)
    assert last < 0.9 * first
    for name, tensor in tree.weights(model).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_labelled_samples_find_the_coefficients_of_a_known_mixture() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3, bias=False).double()
    base = {"weight": model.weight.detach().clone()}
    changes = torch.randn(2, 3, 6, dtype=torch.float64)
    experts = [{"weight": base["weight"] + change} for change in changes]
    truth = base["weight"] + 0.7 * changes[0] - 0.2 * changes[1]
    inputs = samples(0).double()

    def squared(answers: Tensor, targets: Tensor | None) -> Tensor:
        assert targets is not None
        return (answers - targets).square().mean()

    batches = [[(inputs, inputs @ truth.T)]]
    learned = adamerging(model, base, experts, batches, loss=squared, steps=400, learning_rate=0.05)
    assert learned.coefficients["weight"] == pytest.approx((0.7, -0.2), abs=1e-3)
    torch.testing.assert_close(learned.merged(base, experts)["weight"], truth, atol=1e-2, rtol=0)


def test_adamerging_with_a_head_for_each_task() -> None:
    torch.manual_seed(0)
    body = nn.Linear(6, 8)
    heads = [nn.Sequential(body, nn.ReLU(), nn.Linear(8, classes)) for classes in (2, 5)]
    base = {f"0.{name}": t.clone() for name, t in tree.snapshot(tree.weights(body)).items()}
    experts = [{name: t + 0.5 * torch.randn(t.shape) for name, t in base.items()} for _ in range(2)]
    batches = [[(samples(s), None)] for s in (1, 2)]
    learned = adamerging(heads, base, experts, batches, steps=40, learning_rate=0.05)
    assert learned.losses[-1] < learned.losses[0]
    with pytest.raises(InputError, match="1 lists of batches for 2 modules"):
        adamerging(heads, base, experts, batches[:1])


def test_greedy_soup_keeps_what_helps() -> None:
    # Scores are of the sum of the kept experts' values, as far as 6; expert 1 never helps.
    values = [3.0, -4.0, 2.0, 1.0]
    seen = []

    def evaluate(rule: Linear) -> float:
        assert isinstance(rule.weight, tuple)
        kept = [index for index, weight in enumerate(rule.weight) if weight]
        seen.append(kept)
        return min(6.0, sum(values[index] for index in kept))

    assert greedy_soup(4, evaluate).weight == (1.0, 0.0, 1.0, 1.0)
    assert seen == [[0], [1], [2], [3], [0, 2], [0, 2, 3], [0, 1, 2, 3]]
    # The rule that comes out averages what was kept.
    models = [{"a": torch.tensor([value])} for value in values]
    assert lifelong.merge(greedy_soup(4, evaluate), None, models)["a"].item() == 2.0
    with pytest.raises(InputError, match="at least one"):
        greedy_soup(0, evaluate)


def test_prototypes_are_mean_directions() -> None:
    tasks = [[torch.tensor([[2.0, 0.0], [0.0, 1.0]])], [torch.tensor([[0.0, -3.0]])]]
    found = prototypes(lambda x: x, tasks)
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))
    with pytest.raises(InputError, match="task 1"):
        prototypes(lambda x: x, [*tasks[:1], []])


def routed(temperature: float, mix: Any) -> tuple[Routed, nn.Module, dict[str, Tensor], list[dict[str, Tensor]]]:
    model, base, experts = family()
    model.eval()
    keys = torch.stack([torch.eye(6)[0], torch.eye(6)[1]])
    wrapper = Routed(model, base, experts, lambda x: x, keys, temperature=temperature, mix=mix, chunk=5)
    return wrapper.eval(), model, base, experts


def test_routing_merges_for_every_sample() -> None:
    wrapper, model, base, experts = routed(0.5, "weights")
    inputs = samples(3)
    weights = (F.normalize(inputs, dim=1)[:, :2] / 0.5).softmax(1)
    torch.testing.assert_close(wrapper.attention(inputs), weights)
    slow = []
    for sample, (first, second) in zip(inputs, weights, strict=True):
        merged = {n: t + first * (experts[0][n] - t) + second * (experts[1][n] - t) for n, t in base.items()}
        slow.append(functional_call(model, merged, (sample[None],))[0])
    torch.testing.assert_close(wrapper(inputs), torch.stack(slow))


def test_routing_can_mix_outputs_or_take_the_best_expert() -> None:
    inputs = samples(3)
    wrapper, model, _, experts = routed(0.5, "outputs")
    answers = torch.stack([functional_call(model, expert, (inputs,)) for expert in experts], 1)
    weights = wrapper.attention(inputs)
    torch.testing.assert_close(wrapper(inputs), (weights[:, :, None] * answers).sum(1))
    best = answers[torch.arange(len(inputs)), weights.argmax(1)]
    torch.testing.assert_close(routed(0.5, "best")[0](inputs), best)
    # At a low temperature all three are the same.
    for mix in ("weights", "outputs"):
        torch.testing.assert_close(routed(1e-6, mix)[0](inputs), best)
    with pytest.raises(InputError, match="2 prototypes are given for 3 experts"):
        Routed(model, {}, [{}] * 3, lambda x: x, torch.eye(2))


@pytest.mark.parametrize("mix", ["weights", "outputs", "best"])
def test_routing_under_autocast(mix: Any) -> None:
    inputs = samples(3)
    wrapper = routed(1e-3, mix)[0]
    expected = wrapper(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(wrapper(inputs).float(), expected, rtol=0.05, atol=0.1)


def test_batch_norm_statistics_are_those_of_the_merged_activations() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=0.3), nn.Dropout(0.5), nn.Linear(8, 3))
    with torch.no_grad():
        model[1].running_mean.fill_(7.0)
    before = tree.snapshot(dict(model.named_parameters()))
    batches = [samples(seed) for seed in range(3)]
    model.eval()
    reestimate(model, batches)
    hidden = [model[0](batch).detach() for batch in batches]
    norm = model[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert norm.momentum == 0.3
    assert not any(module.training for module in model.modules())
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor.detach(), before[name], rtol=0, atol=0)
    with pytest.raises(InputError, match="at least one batch"):
        reestimate(model, [])
