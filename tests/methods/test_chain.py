"""Chains: what cannot be done together is refused, and what can means the same wherever its parts stand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lifelong
from lifelong.cli import main
from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.learner import Batch, Learner
from lifelong.methods import METHODS, Chain, Method
from lifelong.methods import build as build_method
from lifelong.streams import Scenario
from lifelong.training import loop

ALONE = [name for name, kind in METHODS.items() if kind.alone]
OTHERS = [name for name, kind in METHODS.items() if not kind.alone]
# A generator of the usual size takes most of the time of a short run.
SMALL = {
    "dgr": {"latent": 2, "hidden": [8]},
    "vcl": {"samples": 2},
    "gss": {"comparisons": 2},
    "adamerging": {"steps": 1},
}


def values(method: str, **more: Any) -> dict[str, Any]:
    return {
        "stream": "split",
        "data": "digits",
        "scenario": "class",
        "tasks": 2,
        "method": method,
        "method_settings": {name: each for name, each in SMALL.items() if name in method.split("+")},
        "model": {"name": "mlp", "hidden": [8]},
        "train_samples": 30,
        "batch_size": 10,
        "steps": 2,
        "device": "cpu",
        "threads": 1,
        **more,
    }


def trained(method: str, **more: Any) -> tuple[Learner, Method]:
    made = recipe(values(method, **more))
    stream, running = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    for _ in loop.train(learner, running, stream, build.schedule(made)):
        pass
    return learner, running


@pytest.mark.parametrize("name", ALONE)
def test_who_stands_alone_is_refused_in_a_chain_with_its_reason(name: str) -> None:
    for chain in (f"ewc+{name}", f"{name}+er"):
        with pytest.raises(InputError) as error:
            build_method(chain, {})
        assert str(error.value) == f"method {chain}: {name} cannot be chained, as {METHODS[name].alone}"
    assert build_method(name, {})


def test_those_who_answer_or_train_otherwise_stand_alone() -> None:
    structural = {name for name, kind in METHODS.items() if kind.family == "structural"}
    # Its gates hold no weight, and the paper has another method hold them.
    assert structural - set(ALONE) == {"xdg"}
    with pytest.raises(InputError, match="hat cannot be chained"):
        Chain({"ewc": METHODS["ewc"](), "hat": METHODS["hat"]()})


@pytest.mark.parametrize(
    ("chain", "what"),
    [
        ("er+der", "replay samples"),
        ("mir+icarl", "replay samples"),
        ("der+lwf-mc", "make the loss anew"),
        ("vcl+bic", "choose the samples of a task"),
    ],
)
def test_two_who_cannot_both_be_heeded_are_refused(chain: str, what: str) -> None:
    first, second = chain.split("+")
    with pytest.raises(InputError, match=f"^method .*: {first} and {second} both {what}, so choose one of them$"):
        build_method(chain, {})


def test_a_method_is_named_once() -> None:
    with pytest.raises(InputError, match=r"^method ewc\+si\+ewc names ewc twice$"):
        build_method("ewc+si+ewc", {})


@pytest.mark.parametrize("first", OTHERS)
def test_every_chain_learns_or_is_refused(first: str) -> None:
    for second in OTHERS[OTHERS.index(first) + 1 :]:
        try:
            build_method(f"{first}+{second}", {})
        except InputError:
            with pytest.raises(InputError, match="so choose one of them"):
                build_method(f"{second}+{first}", {})
            continue
        if Scenario.CLASS in METHODS[first].scenarios and Scenario.CLASS in METHODS[second].scenarios:
            learner, _ = trained(f"{first}+{second}", head="growing")
        elif Scenario.TASK in METHODS[first].scenarios and Scenario.TASK in METHODS[second].scenarios:
            learner, _ = trained(f"{first}+{second}", scenario="task")
        else:
            continue
        assert all(each.isfinite().all() for each in learner.model.parameters())


def test_some_chains_are_allowed() -> None:
    allowed = {
        "er+ewc",
        "er+lwf",
        "der+si",
        "er+a-gem",
        "feature-extraction+si",
        "l2+dgr",
        "bic+ewc",
        "er+vcl",
        "icarl+mas",
    }
    assert all(isinstance(build_method(name, {}), Chain) for name in allowed)


@pytest.mark.parametrize("pair", [("lwf", "der"), ("lwf", "er-ace"), ("si", "lfl"), ("rwalk", "feature-extraction")])
def test_parts_mean_the_same_in_either_order(pair: tuple[str, str]) -> None:
    ends = []
    for first, second in itertools.permutations(pair):
        learner, _ = trained(f"{first}+{second}", tasks=3, steps=4)
        ends.append(dict(learner.model.named_parameters()))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


class Doubled(Method):
    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        return 2 * loss


class Anew(Method):
    makes_loss = True

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        return torch.tensor(5.0)


def test_a_loss_that_is_made_anew_does_not_swallow_the_others() -> None:
    learner, _ = trained("naive")
    batch, nothing = Batch(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 0), torch.zeros(())
    for order in itertools.permutations([Doubled(), Anew()]):
        chain = Chain({str(place): each for place, each in enumerate(order)})
        assert float(chain.loss(learner, batch, nothing, torch.tensor(1.0))) == 10.0


def test_a_comparison_is_refused_before_its_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["--stream", "split-digits", "--scenario", "task", "--methods", "naive,hat+ewc", "--out", str(out)]
    assert main(["compare", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f"lifelong: error: method hat+ewc: hat cannot be chained, as {METHODS['hat'].alone}"
    ]
    assert not out.exists()
    with pytest.raises(InputError, match="packnet cannot be chained"):
        lifelong.run(stream="split", scenario="task", method="packnet+er")
