"""A buffer of samples, and the rules by which arriving samples take places in it: data structures, no policy of use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

Columns = dict[str, Tensor]


@dataclass
class Buffer:
    """Samples kept for later, in columns of equal length, at most `capacity` of them.

    Args:
        capacity: how many rows fit.
        columns: tensors `[rows, ...]`, the first `len(self)` rows of which are filled.
        groups: `[stored]` int64 on the CPU, the group of each row (its class, its task, or both).
        seen: how many samples have been offered.
        arrived: `[groups]` int64 on the CPU, how many of each group have been offered.
    """

    capacity: int = 0
    columns: Columns = field(default_factory=dict)
    groups: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    seen: int = 0
    arrived: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def nbytes(self) -> int:
        """Size of what is kept of the samples, rows that are still free included."""
        return sum(column.nbytes for column in self.columns.values())

    def rows(self, indices: Tensor) -> Columns:
        """Return the samples at `indices`, `[n]` int64, column by column."""
        return {name: column.index_select(0, indices.to(column.device)) for name, column in self.columns.items()}

    def write(self, slots: Sequence[int], columns: Mapping[str, Tensor], groups: Sequence[int]) -> None:
        """Put sample i of `columns` (`[n, ...]` each) and its group into row `slots[i]`, or nowhere where that is -1.

        Where two samples go to one row the later one has it. Rows are filled without gaps.
        """
        last = {slot: index for index, slot in enumerate(slots) if slot >= 0}
        if not last:
            return
        kept = max(len(self), max(last) + 1)
        self._reserve(kept, columns)
        rows, chosen = torch.tensor(list(last)), torch.tensor(list(last.values()))
        for name, values in columns.items():
            target, picked = self.columns[name], values.detach().index_select(0, chosen.to(values.device))
            target.index_copy_(0, rows.to(target.device), picked.to(target.device, target.dtype))
        grown = torch.zeros(kept, dtype=torch.int64)
        grown[: len(self)] = self.groups
        grown[rows] = torch.tensor(groups, dtype=torch.int64)[chosen]
        self.groups = grown

    def append(self, columns: Mapping[str, Tensor], group: int) -> None:
        """Put samples of one `group` behind those that are there, making room for them."""
        count = len(next(iter(columns.values())))
        self.capacity = max(self.capacity, len(self) + count)
        self.write(range(len(self), len(self) + count), columns, [group] * count)

    def keep(self, indices: Tensor) -> None:
        """Keep only the rows at `indices`, `[n]` int64, in that order."""
        self.columns = self.rows(indices)
        self.groups = self.groups[indices.cpu()]

    def note(self, groups: Sequence[int]) -> None:
        """Count samples of `groups` as offered."""
        counts = torch.bincount(torch.tensor(groups, dtype=torch.int64), minlength=len(self.arrived))
        counts[: len(self.arrived)] += self.arrived
        self.arrived, self.seen = counts, self.seen + len(groups)

    def _reserve(self, rows: int, like: Mapping[str, Tensor]) -> None:
        """Make room for `rows`; doubling, so that a buffer that fills batch by batch is copied only a few times."""
        allocated = len(next(iter(self.columns.values()))) if self.columns else 0
        if rows <= allocated:
            return
        room = max(rows, min(2 * allocated, self.capacity))
        for name, values in like.items():
            grown = values.new_zeros(room, *values.shape[1:])
            if name in self.columns:
                grown[:allocated] = self.columns[name]
            self.columns[name] = grown


Places = Callable[[Buffer, Sequence[int], np.random.Generator], list[int]]


def reservoir(buffer: Buffer, groups: Sequence[int], random: np.random.Generator) -> list[int]:
    """Return places by reservoir sampling: each sample ever offered is in the buffer with the same probability.

    The n-th sample takes a place drawn from n, and is dropped where that lies beyond the capacity (Vitter 1985,
    algorithm R).

    Args:
        buffer: where the samples go; not changed.
        groups: of the arriving samples, `[n]`.
        random: what is drawn from.

    Returns:
        A row for each sample, -1 for none.
    """
    numbers = buffer.seen + np.arange(len(groups))
    drawn = np.floor(random.random(len(groups)) * (numbers + 1)).astype(np.int64)
    places = np.where(numbers < buffer.capacity, numbers, drawn)
    return [int(place) if place < buffer.capacity else -1 for place in places]


def balanced(buffer: Buffer, groups: Sequence[int], random: np.random.Generator) -> list[int]:
    """Return places that keep groups as even as what has been offered allows, arguments as for `reservoir`.

    A sample goes to a free row, else to that of a random sample of a largest group. Where its own group is a largest
    one, to within a sample, it takes a place in it as by reservoir sampling (after Chrysakis & Moens 2020, algorithm
    1).
    """
    members = _members(buffer)
    arrived = dict(enumerate(buffer.arrived.tolist()))
    # Kept along and not looked for at each sample, which with a hundred groups was a third of the time.
    most = max(map(len, members.values()), default=0)
    places, used = [], len(buffer)
    for group in groups:
        mine, number = members.setdefault(group, []), arrived.get(group, 0)
        arrived[group] = number + 1
        if used < buffer.capacity:
            place, used = used, used + 1
            mine.append(place)
            most = max(most, len(mine))
        elif len(mine) < most - 1:
            largest = [rows for rows in members.values() if len(rows) == most]
            victim = largest[int(random.integers(len(largest)))]
            place = victim.pop(int(random.integers(len(victim))))
            mine.append(place)
            most -= len(largest) == 1
        else:
            drawn = int(random.integers(number + 1))
            place = mine[drawn] if drawn < len(mine) else -1
        places.append(place)
    return places


def ring(share: int) -> Places:
    """Return the rule by which each group has `share` rows of its own, where the newest replaces the oldest."""

    def places(buffer: Buffer, groups: Sequence[int], random: np.random.Generator) -> list[int]:
        return _of_group(buffer, groups, share, lambda number: number % share)

    return places


def per_group(share: int) -> Places:
    """Return the rule by which each group has a reservoir of `share` rows of its own."""

    def places(buffer: Buffer, groups: Sequence[int], random: np.random.Generator) -> list[int]:
        return _of_group(
            buffer, groups, share, lambda number: number if number < share else int(random.integers(number + 1))
        )

    return places


def draw(buffer: Buffer, count: int, random: np.random.Generator, among: Tensor | None = None) -> Tensor:
    """Return `count` different rows drawn evenly, or all where there are fewer, `[n]` int64.

    Args:
        buffer: whose rows they are.
        count: how many.
        random: what is drawn from.
        among: the rows to draw from, `[m]` int64 on the CPU; all by default.
    """
    rows = torch.arange(len(buffer)) if among is None else among
    if count >= len(rows):
        return rows
    return rows[torch.from_numpy(random.choice(len(rows), count, replace=False))]


def _of_group(buffer: Buffer, groups: Sequence[int], share: int, place_of: Callable[[int], int]) -> list[int]:
    """Return places where the number of a sample in its group names the place among the group's rows."""
    members = _members(buffer)
    arrived = dict(enumerate(buffer.arrived.tolist()))
    places, used = [], len(buffer)
    for group in groups:
        mine, number = members.setdefault(group, []), arrived.get(group, 0)
        arrived[group] = number + 1
        if len(mine) < min(share, number + 1) and used < buffer.capacity:
            place, used = used, used + 1
            mine.append(place)
        else:
            position = place_of(number)
            place = mine[position] if position < len(mine) else -1
        places.append(place)
    return places


def _members(buffer: Buffer) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for row, group in enumerate(buffer.groups.tolist()):
        found.setdefault(group, []).append(row)
    return found
