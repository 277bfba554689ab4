"""Who is kept, against the distributions and the orders that the rules promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from lifelong import memory
from lifelong.memory import Buffer, Places


def filled(places: Places, groups: list[int], capacity: int, seed: int, batch: int = 7) -> Buffer:
    """A buffer that samples 0, 1, 2 ... of `groups` have been offered to, batch by batch."""
    buffer, random = Buffer(capacity), np.random.default_rng(seed)
    for start in range(0, len(groups), batch):
        arriving = groups[start : start + batch]
        columns = {"numbers": torch.arange(start, start + len(arriving))}
        buffer.write(places(buffer, arriving, random), columns, arriving)
        buffer.note(arriving)
    return buffer


def kept(buffer: Buffer) -> list[int]:
    return buffer.rows(torch.arange(len(buffer)))["numbers"].tolist()


def test_reservoir_keeps_each_sample_with_the_same_chance() -> None:
    samples, capacity, runs = 40, 10, 2000
    counts = np.zeros(samples)
    for seed in range(runs):
        counts[kept(filled(memory.reservoir, [0] * samples, capacity, seed))] += 1
    assert counts.sum() == runs * capacity
    # Inclusions of a run exclude each other a little, which only lowers the statistic's variance.
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("rule", [memory.reservoir, memory.balanced, memory.ring(4), memory.per_group(4)])
def test_whatever_the_rule_the_first_samples_are_all_kept_once(rule: Places) -> None:
    assert sorted(kept(filled(rule, [0, 1, 2] * 4, 12, seed=0))) == list(range(12))


def test_balanced_gives_each_class_its_share_whatever_the_order() -> None:
    groups = [0] * 50 + [1] * 50 + [2] * 3 + [3] * 50
    sizes = np.bincount(filled(memory.balanced, groups, 23, seed=3).groups.numpy())
    # Class 2 has only three samples; the twenty other places are shared to within one.
    assert sizes[2] == 3
    assert sizes.sum() == 23
    assert max(sizes[[0, 1, 3]]) - min(sizes[[0, 1, 3]]) <= 1


def test_balanced_keeps_members_of_a_full_group_with_the_same_chance() -> None:
    counts = np.zeros(40)
    for seed in range(2000):
        counts[[each for each in kept(filled(memory.balanced, [0] * 40 + [1] * 10, 10, seed)) if each < 40]] += 1
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_a_ring_holds_the_newest_of_each_group() -> None:
    groups = [0, 1] * 10 + [0] * 5
    buffer = filled(memory.ring(3), groups, 6, seed=0)
    newest = [[n for n, group in enumerate(groups) if group == g][-3:] for g in (0, 1)]
    assert sorted(kept(buffer)) == sorted(itertools.chain(*newest))


def test_each_group_has_a_reservoir_of_its_own() -> None:
    counts = np.zeros(40)
    for seed in range(2000):
        buffer = filled(memory.per_group(5), [0] * 20 + [1] * 20, 10, seed)
        assert np.bincount(buffer.groups.numpy()).tolist() == [5, 5]
        counts[kept(buffer)] += 1
    assert scipy.stats.chisquare(counts[:20]).pvalue > 1e-3
    assert scipy.stats.chisquare(counts[20:]).pvalue > 1e-3


def test_of_two_samples_for_one_row_the_later_one_has_it() -> None:
    buffer = Buffer(4)
    buffer.write([0, 1, 0, -1], {"numbers": torch.tensor([10, 11, 12, 13])}, [5, 6, 7, 8])
    assert kept(buffer) == [12, 11]
    assert buffer.groups.tolist() == [7, 6]


def test_drawn_rows_are_different_and_all_of_them_where_few() -> None:
    buffer = filled(memory.reservoir, [0] * 20, 20, seed=0)
    drawn = memory.draw(buffer, 8, np.random.default_rng(1))
    assert len(set(drawn.tolist())) == 8
    assert memory.draw(buffer, 50, np.random.default_rng(1)).tolist() == list(range(20))


def test_kept_rows_stay_in_the_order_given() -> None:
    buffer = filled(memory.reservoir, [3, 4, 5], 3, seed=0)
    buffer.keep(torch.tensor([2, 0]))
    assert kept(buffer) == [2, 0]
    assert buffer.groups.tolist() == [5, 3]
