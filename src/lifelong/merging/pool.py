"""A pool of experts: a folder of task vectors of one base, to be merged in any choice and by any rule.

FOLDER/pool.json            what there is; written last, so that a file it does not name does not count
FOLDER/base.safetensors     the base
FOLDER/NAME.safetensors     one task vector, its base's fingerprint in the header
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from xxhash import xxh3_128, xxh3_128_hexdigest

from lifelong import tree
from lifelong.errors import InputError, StateError, unknown
from lifelong.files import write_file, write_json
from lifelong.merging.formats import floating
from lifelong.merging.in_memory import merge
from lifelong.merging.rule import Rule
from lifelong.merging.safetensors import read
from lifelong.merging.stored import Format, pack, unpack
from lifelong.tree import Params

MANIFEST, BASE = "pool.json", "base.safetensors"
# Also what a file name may be made of.
_NAME = re.compile(r"[\w][\w .+=-]*")


@dataclass(frozen=True)
class Member:
    """An expert of a pool.

    Args:
        name: by which it is known.
        format: how its task vector is stored.
        density: share of the numbers that are stored, 1 unless it is sparse.
        error: `||tau - stored tau|| / ||tau||` over the whole model: what storing it so has cost.
        norm: `||tau||`, before it was stored.
        bytes, digest: of its file.
        task: what is known of its task, as JSON: its name, its classes, a fingerprint of its samples ...
        prototype: mean feature of its task, `[width]`; empty where it is not known.
    """

    name: str
    format: Format
    density: float
    error: float
    norm: float
    bytes: int
    digest: str
    task: Mapping[str, Any] = field(default_factory=dict)
    prototype: Sequence[float] = ()

    @property
    def file(self) -> str:
        """Of its own name for each content: until the manifest says otherwise, what it replaces is there."""
        return f"{self.name}.{self.digest[:12]}.safetensors"


class Pool:
    """The pool in a folder. What changes it is written whole or not at all, and only one process does so at a time.

    Args:
        folder: made by `Pool.create`.

    Raises:
        InputError: no pool there.
        StateError: its manifest is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._members: dict[str, Member] = {}
        self._read()

    @classmethod
    def create(cls, folder: Path | str, base: nn.Module | Params, *, limit: int | None = None) -> Pool:
        """Return a new pool, empty, of experts that are fine-tuned from `base`.

        Args:
            folder: must not exist, or be empty.
            base: a module, or its weights.
            limit: bytes that all task vectors may take; None for any number. Beyond it the least useful ones go.

        Raises:
            InputError: a folder that holds something.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not empty: choose another folder for the pool")
        folder.mkdir(parents=True, exist_ok=True)
        weights = _weights(base)
        write_file(folder / BASE, save(weights))
        write_json(folder / MANIFEST, {"base": fingerprint(weights), "limit": limit, "members": []})
        return cls(folder)

    @property
    def members(self) -> dict[str, Member]:
        """The experts by name, the oldest first."""
        return dict(self._members)

    @property
    def bytes(self) -> int:
        """What all task vectors take on disk."""
        return sum(member.bytes for member in self._members.values())

    def base(self) -> Params:
        """Return the weights of the base.

        Raises:
            StateError: the file is missing or not what was written.
        """
        weights = self._load(BASE)
        if fingerprint(weights) != self.fingerprint:
            raise StateError(f"{self.folder / BASE} is not the base that the pool was made with")
        return weights

    def add(
        self,
        name: str,
        expert: nn.Module | Params,
        *,
        base: nn.Module | Params | str | None = None,
        format: Format = "float32",
        density: float = 0.1,
        task: Mapping[str, Any] | None = None,
        prototype: Tensor | None = None,
        replace: bool = False,
    ) -> list[str]:
        """Store the task vector of `expert`, and return the names of those that had to go for want of room.

        Args:
            name: of letters, digits and `_ .+=-`; it becomes a file's name.
            expert: a module, or its weights, with the names and shapes of the base; more names are left out.
            base: what it was fine-tuned from, to be checked: a module, weights, or their fingerprint.
            format: `float32`; `bf16` takes half the room; `sparse` keeps the largest numbers of each tensor alone.
            density: share of the numbers that `sparse` keeps, above 0 to 1.
            task: what to remember of its task, as JSON.
            prototype: mean feature of its task, `[width]`, by the base (`lifelong.merging.routing.prototypes`).
            replace: an expert of that name may be there, and goes.

        Raises:
            InputError: an expert of another base, of other tensors, one that is not finite, a name that is taken or
                cannot be a file's, or a task vector that alone is beyond the pool's limit.
        """
        self._check_new(name, replace)
        if base is not None:
            self.check_base(name, base)
        change = _change(name, self.base(), _weights(expert))
        change, statistics = _apart(change)
        packed = pack(change, format, density)
        restored = unpack(packed, {each: tensor.shape for each, tensor in change.items()})
        norm = float(tree.norm(change))
        content = save({**packed, **statistics}, {"base": self.fingerprint, "format": format})
        member = Member(
            name,
            format,
            density if format == "sparse" else 1.0,
            float(tree.norm(tree.sub(change, restored))) / norm if norm > 0 else 0.0,
            norm,
            len(content),
            xxh3_128_hexdigest(content),
            dict(task or {}),
            () if prototype is None else tuple(prototype.flatten().tolist()),
        )
        if self.limit is not None and member.bytes > self.limit:
            raise InputError(
                f"expert {name} takes {member.bytes:,} bytes, and the pool {self.folder} may take {self.limit:,}: "
                f"store it as bf16 or sparse, or give the pool more room"
            )
        with self._changing():
            write_file(self.folder / member.file, content)
            self._members = {**{each: kept for each, kept in self._members.items() if each != name}, name: member}
            return self._make_room(name)

    def check_base(self, name: str, base: nn.Module | Params | str) -> None:
        """Refuse the expert `name` if `base`, a module, weights or their fingerprint, is not the pool's."""
        theirs = base if isinstance(base, str) else fingerprint(_weights(base))
        if theirs != self.fingerprint:
            raise InputError(
                f"expert {name} is of another base ({theirs}) than the pool {self.folder} ({self.fingerprint})"
            )

    def remove(self, name: str) -> None:
        """Forget an expert.

        Raises:
            InputError: no such expert.
        """
        self._check_known([name])
        with self._changing():
            del self._members[name]

    def vector(self, name: str) -> Params:
        """Return the task vector of an expert as it is stored, in float32.

        Raises:
            InputError: no such expert.
            StateError: its file is missing, damaged or of another base.
        """
        self._check_known([name])
        member = self._members[name]
        entries = read(self.folder / BASE).entries
        shapes = {each: entry.shape for each, entry in entries.items() if floating(entry.dtype)}
        return unpack(self._load(member.file, member.digest), shapes)

    def expert(self, name: str) -> Params:
        """Return the weights of an expert: the base plus its task vector."""
        return self._on(self.base(), name)

    def merge(self, rule: str | Rule = "magmax", names: Sequence[str] | None = None, **values: Any) -> Params:
        """Return the merge of some experts, with the names and dtypes of the base.

        Statistics of batch normalisation (`running_mean`, `running_var`) are averaged, whatever the rule: they are no
        directions to go, and a sum of changes would make variances negative.

        Args:
            rule: a name (`lifelong list rules`) or a rule.
            names: which, in their order; all by default.
            values: settings of a rule given by name.

        Raises:
            InputError: no such expert or rule, or an empty pool.
        """
        chosen = list(self._members) if names is None else list(names)
        if not chosen:
            raise InputError(f"the pool {self.folder} has no experts to merge")
        self._check_known(chosen)
        base = self.base()
        experts = [self._on(base, name) for name in chosen]
        weights, statistics = _apart(base)
        merged = merge(rule, weights, [_apart(expert)[0] for expert in experts], **values)
        for name, start in statistics.items():
            merged[name] = torch.stack([expert[name].float() for expert in experts]).mean(0).to(start.dtype)
        return {name: merged[name] for name in base}

    def interpolate(self, first: str, second: str, weight: float) -> Params:
        """Return `(1 - weight) theta_first + weight theta_second`, to carry over what one expert knows to the other.

        Raises:
            InputError: no such expert, or a weight that is not in 0 to 1.
        """
        if not 0 <= weight <= 1:
            raise InputError(f"weight = {weight} must be a share, 0 to 1")
        start, end = self.expert(first), self.expert(second)
        names = [name for name, each in start.items() if each.is_floating_point()]
        mixed = tree.interpolate({name: start[name] for name in names}, {name: end[name] for name in names}, weight)
        return {**start, **mixed}

    def nearest(self, prototype: Tensor, count: int = 1) -> list[tuple[str, float]]:
        """Return the experts whose tasks have features most like those of a new one, with the cosines, best first.

        Args:
            prototype: mean feature of the new task, `[width]`.
            count: how many at most.

        Raises:
            InputError: no expert has a prototype, or one of another width.
        """
        known = self.prototypes()
        wanted = prototype.flatten().cpu().double()
        widths = {len(each) for each in known.values()}
        if widths != {len(wanted)}:
            raise InputError(f"the prototype has {len(wanted)} numbers, and those of the pool have {sorted(widths)}")
        found = {
            name: float(torch.cosine_similarity(wanted, torch.tensor(each, dtype=torch.float64), dim=0))
            for name, each in known.items()
        }
        return sorted(found.items(), key=lambda each: -each[1])[:count]

    def prototypes(self) -> dict[str, Sequence[float]]:
        """Return the mean features of the tasks of those experts that were added with one.

        Raises:
            InputError: none was.
        """
        known = {name: member.prototype for name, member in self._members.items() if member.prototype}
        if not known:
            raise InputError(f"no expert of the pool {self.folder} was added with a prototype")
        return known

    def usefulness(self) -> dict[str, float]:
        """Return for each expert the length of that part of its task vector which no mixture of the others gives.

        `min_w ||tau_t - sum_{s != t} w_s tau_s||`: 0 for one that the others make up for.
        """
        vectors = [_apart(self.vector(name))[0] for name in self._members]
        products = np.array([[float(tree.dot(left, right)) for right in vectors] for left in vectors])
        return {name: _residual(products, index) for index, name in enumerate(self._members)}

    def _on(self, base: Params, name: str) -> Params:
        change = self.vector(name)
        return {
            each: (start.float() + change[each]).to(start.dtype) if each in change else start
            for each, start in base.items()
        }

    def _make_room(self, newest: str) -> list[str]:
        """Drop the least useful experts, but not the newest, until the rest is within the limit."""
        gone: list[str] = []
        while self.limit is not None and self.bytes > self.limit:
            useful = self.usefulness()
            least = min((name for name in self._members if name != newest), key=lambda name: useful[name])
            del self._members[least]
            gone.append(least)
        return gone

    def _check_new(self, name: str, replace: bool) -> None:
        if not _NAME.fullmatch(name):
            raise InputError(f"{name!r} cannot name an expert: use letters, digits and _ .+=-, a letter or digit first")
        if name in self._members and not replace:
            raise InputError(f"the pool {self.folder} has an expert {name!r} already: remove it first, or replace it")

    def _check_known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._members:
                raise unknown("expert", name, self._members)

    def _load(self, file: str, digest: str | None = None) -> Params:
        path = self.folder / file
        try:
            content = path.read_bytes()
            if digest is not None and xxh3_128_hexdigest(content) != digest:
                raise StateError(f"{path} does not have the content that was written")
            return load(content)
        except (OSError, SafetensorError) as error:
            raise StateError(f"{path} cannot be read: {error}") from None

    def _read(self) -> None:
        path = self.folder / MANIFEST
        if not path.is_file():
            raise InputError(f"{self.folder} is no pool: it has no {MANIFEST}")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.fingerprint: str = found["base"]
            self.limit: int | None = found["limit"]
            self._members = {each["name"]: Member(**each) for each in found["members"]}
        except (ValueError, KeyError, TypeError):
            raise StateError(f"{path} is damaged") from None

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the pool alone, as it is on disk now, and write down what has become of it."""
        with filelock.FileLock(self.folder / ".lock"):
            self._read()
            before = {member.file for member in self._members.values()}
            yield
            members = [dataclasses.asdict(member) for member in self._members.values()]
            write_json(self.folder / MANIFEST, {"base": self.fingerprint, "limit": self.limit, "members": members})
            for file in before - {member.file for member in self._members.values()}:
                (self.folder / file).unlink(missing_ok=True)


def fingerprint(weights: Params) -> str:
    """Return a digest of the names, shapes, formats and numbers of `weights`, in any order and on any device."""
    digest = xxh3_128()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _weights(model: nn.Module | Params) -> Params:
    """Return weights as a module saves them and loads them again: tied ones by each name, no passing buffers."""
    found = model.state_dict() if isinstance(model, nn.Module) else model
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    met: set[int] = set()
    for name, tensor in weights.items():
        if tensor.data_ptr() in met:  # safetensors stores no tensor twice
            weights[name] = tensor.clone()
        met.add(tensor.data_ptr())
    return weights


def _change(name: str, base: Params, expert: Params) -> Params:
    """Return the task vector of `expert`, in float32, checked."""
    missing = sorted(base.keys() - expert.keys())
    if missing:
        raise InputError(f"expert {name} lacks {len(missing)} tensors of the base: {', '.join(missing[:4])}")
    unlike = [each for each, tensor in base.items() if expert[each].shape != tensor.shape]
    if unlike:
        shapes = f"{list(expert[unlike[0]].shape)}, and the base has {list(base[unlike[0]].shape)}"
        raise InputError(f"expert {name}: tensor {unlike[0]!r} is {shapes}")
    change = {each: expert[each].float() - start.float() for each, start in base.items() if start.is_floating_point()}
    odd = [each for each, tensor in change.items() if not tensor.isfinite().all()]
    if odd:
        raise InputError(f"expert {name}: tensor {odd[0]!r} has numbers that are not finite")
    return change


def _apart(weights: Params) -> tuple[Params, Params]:
    """Return what is learned, and the statistics of batch normalisation, which PyTorch names so."""
    statistics = {name: each for name, each in weights.items() if name.endswith(("running_mean", "running_var"))}
    return {name: each for name, each in weights.items() if name not in statistics}, statistics


def _residual(products: np.ndarray[Any, Any], index: int) -> float:
    """Return how far vector `index` lies from the span of the others, from the inner products of all."""
    others = np.arange(len(products)) != index
    along = products[others, index]
    weights = np.linalg.pinv(products[np.ix_(others, others)], hermitian=True) @ along
    return float(np.sqrt(max(0.0, products[index, index] - along @ weights)))
