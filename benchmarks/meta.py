"""Meta-iterations a second against a loop over tasks, both sides alternating in one process.

    python benchmarks/meta.py [--cells pool] [--rounds 5] [--threads 2] [--against learn2learn] [--json]

`learn2learn` has to be installed beside us, and is used as its examples do. `loop` needs nothing and does the same in
plain PyTorch: for one task after another it clones the weights, takes `torch.autograd.grad` of the support loss (with
`create_graph` for second order) and steps, calls the network with PyTorch's batch norm, and accumulates the gradient of
the query loss; then Adam steps. Both sides begin with the same weights and see the same tasks, of noise in the shapes
of Omniglot or of sinusoids, and their first losses must agree.

A ratio is the median over rounds. Memory is what a meta-iteration adds to the resident memory of a fresh process. With
one thread, time is that of the processor, so that what else a machine does counts for little; with more it is that of
the clock.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from loop import options, ratio, seconds
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lifelong import models
from lifelong.experiments import memory
from lifelong.meta import MAML, Engine, Problem, Sinusoids, engine, gradient, task_network
from lifelong.meta.episodes import Episodes, accuracy, cross_entropy
from lifelong.meta.network import Formulation

TASKS = 32
# A meta-iteration, which returns the mean query loss.
Side = Callable[[], float]


@dataclass(frozen=True)
class Cell:
    """One shape: `network` is strided, pool or sinusoid."""

    network: str
    ways: int
    steps: int
    second_order: bool

    @property
    def name(self) -> str:
        task = "sinusoids, K = 10" if self.network == "sinusoid" else f"{self.network}, {self.ways}-way 1-shot"
        order = "second" if self.second_order else "first"
        return f"{task}, {self.steps} step{'s' if self.steps > 1 else ''}, {order} order"

    @property
    def goal(self) -> float:
        if self.network == "sinusoid":
            return 5.0
        return 2.5 if self.network == "strided" and self.ways == 5 else 1.4


CELLS = [
    Cell(network, ways, steps, second)
    for network, ways in (("sinusoid", 1), ("strided", 5), ("pool", 5), ("strided", 20))
    for steps in (1, 5)
    for second in (False, True)
]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--cells", default="", help="only those whose name has this in it")
    parser.add_argument("--against", choices=("loop", "learn2learn"), default="loop")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    multiprocessing.set_forkserver_preload(["lifelong.meta", "lifelong.models", "lifelong.experiments.memory"])
    rows = []
    for cell in (each for each in CELLS if arguments.cells in each.name):
        rows.append(row(cell, arguments.against, arguments.rounds, arguments.threads))
        if not arguments.json:
            print(said(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "threads": arguments.threads, "tasks": TASKS, "rows": rows}))


def row(cell: Cell, against: str, rounds: int, threads: int) -> dict[str, Any]:
    """Return what the table shows of `cell`, ours first: milliseconds a meta-iteration, and MB."""
    chosen, names = chosen_for(replace(cell, steps=1), threads), ("ours", against)
    # Forked from a server that has imported all and computed nothing, so that what is counted is the iteration's.
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver"), max_tasks_per_child=1) as pool:
        first = [pool.submit(first_iteration, cell, name, chosen, threads).result() for name in names]
    (our_loss, our_bytes), (their_loss, their_bytes) = first
    if abs(our_loss - their_loss) > 1e-3 * abs(their_loss):
        raise SystemExit(f"{cell.name}: our first loss is {our_loss}, and that of {against} is {their_loss}")
    clock = time.process_time if threads == 1 else time.perf_counter
    ours, theirs = seconds([SIDES[name](cell, chosen) for name in names], rounds, clock)
    return {
        "cell": cell.name,
        "ratio": ratio(theirs, ours),
        "goal": cell.goal,
        "ms": (1e3 * median(ours), 1e3 * median(theirs)),
        "megabytes": (our_bytes / 1e6, their_bytes / 1e6),
        "engine": asdict(chosen),
    }


@functools.cache
def chosen_for(cell: Cell, threads: int) -> Engine:
    """Return our engine, as meta-training measures it; once for a network, ways and order, with one step."""
    return engine.choose(maml(cell), lambda name: problem_of(cell, name), episodes_of(cell), threads=threads)


def first_iteration(cell: Cell, side: str, chosen: Engine, threads: int) -> tuple[float, int]:
    """Return the loss of the first meta-iteration, and by how many bytes it raises the peak of resident memory."""
    torch.set_num_threads(threads)
    iterate = SIDES[side](cell, chosen)
    memory.reset_peak()
    before = memory.peak_bytes()
    loss = iterate()
    return loss, memory.peak_bytes() - before


def said(row: dict[str, Any]) -> str:
    (ours, theirs), (our_mb, their_mb), how = row["ms"], row["megabytes"], row["engine"]
    return (
        f"{row['cell']:<42} {row['ratio']:5.2f} x  goal {row['goal']}  {ours:.1f} ms against {theirs:.1f} ms, "
        f"{our_mb:.0f} MB against {their_mb:.0f} MB  "
        f"({how['formulation']}, {how['tasks_at_once']} tasks at once, {how['threads']} threads)"
    )


def maml(cell: Cell) -> MAML:
    """Return the algorithm of both sides."""
    rate = 0.01 if cell.network == "sinusoid" else 0.4
    return MAML(steps=cell.steps, rate=rate, first_order=not cell.second_order)


def _parts(cell: Cell) -> tuple[nn.Module, nn.Linear]:
    """Return trunk and head with PyTorch's own batch norm, the same at each call."""
    if cell.network == "sinusoid":
        trunk, width = models.trunk("mlp", {"hidden": (40, 40)}, (1,), 0), 40
    else:
        settings = {"channels": (64, 64, 64, 64), "halve": "stride" if cell.network == "strided" else "pool"}
        trunk, width = models.trunk("convnet", settings, (1, 28, 28), 0), 64
    torch.manual_seed(0)
    return trunk, nn.Linear(width, cell.ways)


def problem_of(cell: Cell, formulation: Formulation) -> Problem:
    """Return our network and loss."""
    network = task_network(*_parts(cell), episodes_of(cell).support[0], formulation=formulation)
    if cell.network == "sinusoid":
        return Problem(network, Sinusoids.loss, Sinusoids.score)
    return Problem(network, cross_entropy, accuracy)


def episodes_of(cell: Cell) -> Episodes:
    """Return a meta-batch: sinusoids, or noise in the shapes of Omniglot, one query a class."""
    drawn = torch.Generator().manual_seed(0)
    if cell.network == "sinusoid":
        return Sinusoids(shots=10, queries=10).draw(TASKS, drawn)
    support, query = torch.rand(2, TASKS, cell.ways, 1, 28, 28, generator=drawn)
    labels = torch.arange(cell.ways).expand(TASKS, -1)
    return Episodes(support, labels, query, labels)


def _ours(cell: Cell, chosen: Engine) -> Side:
    algorithm, problem, episodes = maml(cell), problem_of(cell, chosen.formulation), episodes_of(cell)
    meta = {name: each.requires_grad_() for name, each in algorithm.parameters(problem).items()}
    optimizer = torch.optim.Adam(meta.values())

    def iterate() -> float:
        found = gradient(algorithm, problem, chosen, meta, {}, episodes, 0)
        for name, each in meta.items():
            each.grad = found.gradient[name]
        optimizer.step()
        return float(found.losses.mean())

    return iterate


def _task_loss(cell: Cell, outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets) if cell.network == "sinusoid" else F.cross_entropy(outputs, targets)


def _loop(cell: Cell, chosen: Engine) -> Side:
    algorithm, module, episodes = maml(cell), nn.Sequential(*_parts(cell)).train(), episodes_of(cell)
    params = dict(module.named_parameters())
    optimizer = torch.optim.Adam(params.values())

    def iterate() -> float:
        optimizer.zero_grad()
        total = 0.0
        for task in range(TASKS):
            adapted = {name: each.clone() for name, each in params.items()}
            for _ in range(cell.steps):
                outputs = functional_call(module, adapted, (episodes.support[task],))
                loss = _task_loss(cell, outputs, episodes.support_targets[task])
                slopes = torch.autograd.grad(loss, list(adapted.values()), create_graph=cell.second_order)
                moved = zip(adapted.items(), slopes, strict=True)
                adapted = {name: each - algorithm.rate * slope for (name, each), slope in moved}
            outputs = functional_call(module, adapted, (episodes.query[task],))
            loss = _task_loss(cell, outputs, episodes.query_targets[task])
            loss.backward()
            total += loss.item()
        for each in params.values():
            each.grad.mul_(1 / TASKS)  # type: ignore[union-attr]
        optimizer.step()
        return total / TASKS

    return iterate


def _learn2learn(cell: Cell, chosen: Engine) -> Side:
    import learn2learn

    module, episodes = nn.Sequential(*_parts(cell)).train(), episodes_of(cell)
    learner = learn2learn.algorithms.MAML(module, lr=maml(cell).rate, first_order=not cell.second_order)
    optimizer = torch.optim.Adam(learner.parameters())

    def iterate() -> float:
        optimizer.zero_grad()
        total = 0.0
        for task in range(TASKS):
            clone = learner.clone()
            for _ in range(cell.steps):
                clone.adapt(_task_loss(cell, clone(episodes.support[task]), episodes.support_targets[task]))
            loss = _task_loss(cell, clone(episodes.query[task]), episodes.query_targets[task])
            loss.backward()
            total += loss.item()
        for each in learner.parameters():
            each.grad.mul_(1 / TASKS)
        optimizer.step()
        return total / TASKS

    return iterate


SIDES: dict[str, Callable[[Cell, Engine], Side]] = {"ours": _ours, "loop": _loop, "learn2learn": _learn2learn}


if __name__ == "__main__":
    main()
