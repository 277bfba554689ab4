"""Seconds a step against a bare PyTorch loop, both sides alternating in one process.

    python benchmarks/loop.py [--quick] [--small] [--methods naive,ewc] [--json]

Prints, for each method at task 2 and at task 20, the median over chunks of steps of the ratio of its time to that of a
bare loop with the same network, fused optimiser, batches and in-memory data, beside its goal; then evaluation, start-up
and memory. `--small` measures a network of 784-100-10 units, where Python shows.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import settings
from lifelong.data import Dataset, Samples, load
from lifelong.errors import LifelongError
from lifelong.experiments import build, memory
from lifelong.experiments.recipe import Recipe, recipe
from lifelong.methods import METHODS
from lifelong.streams import Scenario, Split, Stream, Task
from lifelong.streams.transforms import Permute
from lifelong.training.evaluation import accuracy
from lifelong.training.loop import EpochDone, Step, TaskStarted, train

GOALS = {
    "naive": 1.03,
    "ewc": 1.25,
    "mas": 1.25,
    "scp": 1.25,
    "l2": 1.25,
    "si": 1.4,
    "rwalk": 1.5,
    "lwf": 1.6,
}
BATCH = 128
Clock = Callable[[], float]


def options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what benchmarks in rounds have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--small", action="store_true", help="784-100-10 instead of 784-1024-512-256-10")
    parser.add_argument("--methods", default=",".join(GOALS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    hidden = (100,) if arguments.small else (1024, 512, 256)
    chunks, steps = (6, 20) if arguments.quick else (20, 46)
    if arguments.small:
        steps *= 5
    data = training_data()
    rows: list[dict[str, object]] = []
    for method in arguments.methods.split(","):
        for place in (2, 20):
            goal = 1.15 if arguments.small and method == "naive" else GOALS[method]
            found = steps_of(method, place, hidden, data, chunks, steps)
            rows.append({"measure": f"{method}, task {place}", "goal": goal, **found})
            say(rows[-1], arguments.json)
    rows.append({"measure": "naive against unfused Adam", "ratio": _unfused(hidden, data, chunks, steps), "goal": 1.0})
    say(rows[-1], arguments.json)
    rows.append({"measure": "evaluation", "ratio": _evaluation(hidden, data, chunks), "goal": 1.1})
    say(rows[-1], arguments.json)
    for method in (name for name in arguments.methods.split(",") if name not in ("naive", "lwf")):
        for place in (2, 20):
            measure = f"memory of {method}, copies of the parameters, task {place}"
            rows.append({"measure": measure, "ratio": _copies(method, place), "goal": 4})
            say(rows[-1], arguments.json)
    rows.append({"measure": "seconds from start to first step", "ratio": _start_up(), "goal": 4})
    say(rows[-1], arguments.json)
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "threads": arguments.threads, "rows": rows}))


def say(row: dict[str, object], quiet: bool) -> None:
    if not quiet:
        extra = f"  ({row['ms']:.2f} ms a step, bare {row['bare_ms']:.2f} ms)" if "ms" in row else ""
        if row.get("floor", 1.0) != 1.0:
            extra = f"  floor {row['floor']:.3f}{extra}"
        print(f"{row['measure']:<45} {row['ratio']:6.3f}  goal {row['goal']}{extra}", flush=True)


def training_data() -> Dataset:
    try:
        return load("mnist")
    except LifelongError:
        generator = torch.Generator().manual_seed(0)

        def samples(count: int) -> Samples:
            images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
            return Samples(images, torch.randint(0, 10, (count,), generator=generator))

        return Dataset("random", samples(60_000), samples(10_000), tuple("0123456789"), "random")


def _stream(data: Dataset, places: set[int], tasks: int = 20, scenario: Scenario = Scenario.DOMAIN) -> Stream:
    """All of the data at the tasks `places` (from 1), two batches of it at the others."""
    made = []
    for index in range(tasks):
        arrange = Permute(torch.randperm(784, generator=torch.Generator().manual_seed(index))) if index else None
        first = 10 * index if scenario is Scenario.CLASS else 0
        whole = Split(data.train.inputs, data.train.targets + first, arrange)
        few = whole if index + 1 in places else whole.take(torch.arange(2 * BATCH))
        test = Split(data.test.inputs, data.test.targets + first, arrange)
        made.append(
            Task(index, f"task {index + 1}", few, few.take(torch.arange(0)), test, tuple(range(first, first + 10)))
        )
    names = tuple(str(label) for label in range(first + 10))
    return Stream("permuted", data.name, scenario, tuple(made), names)


def _recipe(method: str, hidden: tuple[int, ...]) -> Recipe:
    # Tiny strengths: the arithmetic is the same, and a loss that diverges would stop the loop.
    declared = {field.name for field in settings.fields(METHODS[method])}
    chosen = {"strength": 1e-6} if "strength" in declared else {}
    return recipe(
        {
            "method": {"name": method, **chosen},
            "scenario": _scenario(method).value,
            "model": {"name": "mlp", "hidden": hidden},
            "lr": 1e-4,
            "epochs": 50,
            "batch_size": BATCH,
        }
    )


def _scenario(method: str) -> Scenario:
    can = METHODS[method].scenarios
    return Scenario.DOMAIN if Scenario.DOMAIN in can else can[0]


def _ours(method: str, place: int, hidden: tuple[int, ...], data: Dataset) -> Iterator[Step]:
    """Steps of `method` within the task `place`; those of earlier tasks are made before the first is asked for."""
    made = _recipe(method, hidden)
    stream = _stream(data, {place}, scenario=_scenario(method))
    learner = build.learner(made, stream)
    events = train(learner, build.method(made), stream, build.schedule(made))
    for event in events:
        if isinstance(event, EpochDone) and event.task.index + 1 < place:
            learner.clock.stop_task = True
        if isinstance(event, TaskStarted) and event.task.index + 1 == place:
            break
    return (event for event in events if isinstance(event, Step))


@dataclass(frozen=True)
class Work:
    """What a bare step does.

    Args:
        samples: learned from in one pass.
        beside: samples of another forward and backward pass, whose gradients are thrown away.
        forward: samples of another forward pass, without gradients.
    """

    samples: int = BATCH
    beside: int = 0
    forward: int = 0


def _bare(hidden: tuple[int, ...], data: Dataset, fused: bool = True, work: Work = Work()) -> Iterator[Tensor]:
    layers: list[nn.Module] = [nn.Flatten()]
    width = 784
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, **({"fused": True} if fused else {}))
    inputs, targets = data.train.inputs.float() / 255, data.train.targets
    parameters = list(model.parameters())
    # Contiguous, as a memory is that does not change from step to step.
    old, unanswered = slice(work.beside), slice(work.forward)
    while True:
        for indices in torch.randperm(len(inputs)).split(work.samples):
            loss = F.cross_entropy(model(inputs[indices]), targets[indices])
            if work.forward:
                with torch.no_grad():
                    model(inputs[unanswered])
            optimizer.zero_grad()
            loss.backward()
            if work.beside:
                torch.autograd.grad(F.cross_entropy(model(inputs[old]), targets[old]), parameters)
            optimizer.step()
            yield loss


def seconds(sides: Sequence[Callable[[], object]], chunks: int, clock: Clock = time.perf_counter) -> list[list[float]]:
    """Return the seconds of each of `sides` in each of `chunks`, `[sides][chunks]`; they run in turn."""
    found: list[list[float]] = [[] for _ in sides]
    for chunk in range(chunks + 1):
        for times, side in zip(found, sides, strict=True):
            begun = clock()
            side()
            if chunk:  # the first warms caches up
                times.append(clock() - begun)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios, chunk by chunk."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _alternate(ours: Callable[[], object], theirs: Callable[[], object], chunks: int) -> float:
    return ratio(*seconds([ours, theirs], chunks))


def steps_of(
    method: str,
    place: int,
    hidden: tuple[int, ...],
    data: Dataset,
    chunks: int,
    steps: int,
    work: Work = Work(),
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Return what a step of `method` at the task `place` costs: as a ratio to a bare one, and in milliseconds.

    `floor` is the ratio of a bare step that does `work` to a bare one that does not.
    """
    loops: list[Iterator[object]] = [_ours(method, place, hidden, data), _bare(hidden, data)]
    if work != Work():
        loops.append(_bare(hidden, data, work=work))
    sides = [functools.partial(_advance, each, steps) for each in loops]
    ours, bare, *least = seconds(sides, chunks, clock)
    return {
        "ratio": ratio(ours, bare),
        "floor": ratio(least[0], bare) if least else 1.0,
        "ms": 1e3 * statistics.median(ours) / steps,
        "bare_ms": 1e3 * statistics.median(bare) / steps,
    }


def _unfused(hidden: tuple[int, ...], data: Dataset, chunks: int, steps: int) -> float:
    ours, bare = _ours("naive", 2, hidden, data), _bare(hidden, data, fused=False)
    return _alternate(lambda: _advance(ours, steps), lambda: _advance(bare, steps), chunks)


def _advance(iterator: Iterator[object], steps: int) -> None:
    for _ in range(steps):
        next(iterator)


def _evaluation(hidden: tuple[int, ...], data: Dataset, chunks: int) -> float:
    made = _recipe("naive", hidden)
    stream = _stream(data, set(), tasks=3)
    learner, method = build.learner(made, stream), build.method(made)
    task = stream.tasks[2]
    inputs, targets = data.test.inputs.float() / 255, data.test.targets
    model = learner.model

    @torch.inference_mode()
    def bare() -> float:
        right = sum(
            (model(x, 0).argmax(1) == y).sum() for x, y in zip(inputs.split(1024), targets.split(1024), strict=True)
        )
        return float(right) / len(targets)

    return _alternate(lambda: accuracy(learner, method, task, task.test), bare, chunks)


def _copies(method: str, tasks: int) -> float:
    """What `method` adds to the peak of resident memory of naive training on `tasks` tasks, in copies of parameters.

    Each side runs in a process of its own. The network is the usual one, four times as wide, so that its parameters
    outweigh all else that moves.
    """
    (naive, _), (peak, size) = _measured("naive", tasks), _measured(method, tasks)
    return (peak - naive) / size


@functools.cache
def _measured(method: str, tasks: int) -> tuple[int, int]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, method, tasks).result()


def _peak(method: str, tasks: int) -> tuple[int, int]:
    """Bytes of resident memory at most, and of the parameters, over `tasks` tasks of four steps each."""
    made = _recipe(method, (4096, 2048, 1024))
    stream = _stream(training_data(), set(), tasks)
    learner, running = build.learner(made, stream), build.method(made)
    for event in train(learner, running, stream, build.schedule(made)):
        if isinstance(event, TaskStarted):
            memory.reset_peak()
            learner.clock.step = event.steps - 4
    return memory.peak_bytes(), sum(each.numel() * each.element_size() for each in learner.params.values())


def _start_up() -> float:
    code = (
        "from lifelong.experiments.recipe import recipe\nfrom lifelong.experiments.run import events\n"
        "from lifelong.training.loop import Step\n"
        "next(e for e in events(recipe({'method': 'ewc'})) if isinstance(e, Step))"
    )
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


if __name__ == "__main__":
    main()
