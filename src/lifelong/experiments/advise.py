"""Which method suits what is given: by rule, and by what every method was measured at on one stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from lifelong.experiments.recipe import ScenarioName
from lifelong.methods import METHODS
from lifelong.methods.method import Method
from lifelong.methods.overview import spelled
from lifelong.settings import setting

# Families and methods that live on features which somebody else has learned.
_FOR_PRETRAINED = ("ncm", "slda", "ranpac", "piggyback", "feature-extraction")


@dataclass(frozen=True)
class Constraints:
    """What is given. Each field is an option of `lifelong advise`."""

    scenario: ScenarioName = setting("class", "what is known at prediction: the task, or not")
    keep_samples: bool = setting(True, "samples of old tasks may be kept")
    boundaries: bool = setting(True, "it is known where a task ends")
    single_pass: bool = setting(False, "each sample is seen once")
    numbers: bool = setting(False, "tasks predict numbers, and not classes alone")
    pretrained: bool = setting(False, "the network has learned much other data before")
    megabytes: float | None = setting(None, "most that a method may keep beside the network, in MB", gt=0)
    network: float | None = setting(None, "size of the network in MB; the measured one's by default", gt=0)
    time: float | None = setting(None, "most training time, as a multiple of fine-tuning's", gt=0)


@dataclass(frozen=True)
class Advice:
    """What is said of one method.

    Args:
        method: its name.
        fits: it breaks no rule and no limit.
        reasons: why it is out, or what speaks for it.
        accuracy: measured final average accuracy, 0..1, or None.
        interval: half a 95 % interval over seeds, or None.
        time: measured training time over that of fine-tuning, or None.
        megabytes: what it would keep beside the network, in MB, or None.
    """

    method: str
    fits: bool
    reasons: tuple[str, ...]
    accuracy: float | None
    interval: float | None
    time: float | None
    megabytes: float | None


def advise(given: Constraints) -> list[Advice]:
    """Return what is to be said of every method, those that fit first, the best of them on top.

    Methods made for what is given (pretrained features, a single pass) precede others; among them measured accuracy
    decides. Those that do not fit follow, with their reasons.
    """
    table = measured()
    found = [_advice(name, kind, given, table) for name, kind in METHODS.items()]
    return sorted(found, key=lambda each: (not each.fits, not each.reasons or not each.fits, -(each.accuracy or 0)))


def measured() -> dict[str, Any]:
    """Return the table of measurements that is part of the package, with the command that makes it."""
    text = resources.files("lifelong.experiments").joinpath("measured.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def _advice(name: str, kind: type[Method], given: Constraints, table: Mapping[str, Any]) -> Advice:
    row = table["scenarios"][given.scenario].get(name, {})
    size = _megabytes(row, given, table["network_megabytes"])
    against = [*_rules(kind, given), *_limits(row.get("time"), size, given)]
    reasons = tuple(against or _praise(name, kind, given))
    return Advice(name, not against, reasons, row.get("accuracy"), row.get("interval"), row.get("time"), size)


def _rules(kind: type[Method], given: Constraints) -> list[str]:
    found = []
    if given.scenario not in [each.value for each in kind.scenarios]:
        found.append(f"it cannot do scenario {given.scenario}")
    if kind.keeps_samples and not given.keep_samples:
        found.append("it keeps samples of old tasks")
    if kind.boundaries and not given.boundaries:
        free = kind.boundaries_unless
        if not free:
            found.append("it must know where a task ends")
    if given.numbers and not kind.regression:
        found.append("it is for classes")
    return found


def _limits(time: float | None, size: float | None, given: Constraints) -> list[str]:
    found = []
    if given.time is not None and time is not None and time > given.time:
        found.append(f"it took {time:.1f} x the time of fine-tuning")
    if given.megabytes is not None and size is not None and size > given.megabytes:
        found.append(f"it keeps about {size:.2g} MB beside the network")
    return found


def _praise(name: str, kind: type[Method], given: Constraints) -> list[str]:
    found = []
    if given.pretrained and name in _FOR_PRETRAINED:
        found.append("made for pretrained features")
    if given.single_pass and kind.single_pass:
        found.append("made for seeing each sample once")
    if not given.boundaries and kind.boundaries:
        found.append(f"does without task boundaries with {spelled(kind.boundaries_unless)}")
    return found


def _megabytes(row: Mapping[str, Any], given: Constraints, reference: float) -> float | None:
    """Return the measured size; what is no sample of old tasks grows with the network."""
    if "bytes" not in row:
        return None
    scale = 1.0 if given.network is None else given.network / reference
    of_samples, of_network = row["stored_bytes"], row["bytes"] - row["stored_bytes"]
    return float(of_samples + of_network * scale) / 1e6
