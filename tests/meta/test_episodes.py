"""What tasks are drawn: which classes, which samples, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lifelong.data import Dataset, from_tensors
from lifelong.errors import InputError
from lifelong.meta import FewShot, Sinusoids
from lifelong.meta.episodes import ClassPool, class_pool, distinct, divide, domain_pool, only, turned


def pool(classes: int = 6, each: int = 5, side: int = 4) -> ClassPool:
    """Pictures whose brightness says which sample they are, and from it which class; in the order of a shuffled set."""
    count = classes * each
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    inputs = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, side, side)[order]
    targets = torch.arange(classes).repeat_interleave(each)[order]
    cut = count - classes
    data = from_tensors((inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:]))
    return class_pool(data)


def drawn_by(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_task_has_distinct_classes_and_samples() -> None:
    source = FewShot(pool(), ways=3, shots=2, queries=3)
    episodes = source.draw(200, drawn_by(0))
    assert episodes.support.shape == (200, 6, 1, 4, 4)
    assert episodes.query.shape == (200, 9, 1, 4, 4)
    samples = torch.cat([episodes.support, episodes.query], 1)[..., 0, 0, 0].mul(255).round().long()
    labels = torch.cat([episodes.support_targets, episodes.query_targets], 1)
    assert episodes.classes is not None
    for task in range(200):
        assert len(samples[task].unique()) == 15
        assert torch.equal(samples[task] // 5, episodes.classes[task][labels[task]])
        assert len(episodes.classes[task].unique()) == 3


def test_the_same_seed_draws_the_same_tasks() -> None:
    source = FewShot(pool(), ways=2)
    one, same, other = (source.draw(20, drawn_by(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.support, same.support)
    assert not torch.equal(one.support, other.support)


def test_all_sets_are_equally_likely_in_every_order() -> None:
    found = distinct(torch.full((12000,), 4), 2, drawn_by(0))
    assert all(len(row.unique()) == 2 for row in found[:50])
    counts = torch.bincount(found[:, 0] * 4 + found[:, 1], minlength=16).view(4, 4)
    assert counts.diagonal().sum() == 0
    # Each of 12 ordered pairs is expected 1,000 times with a deviation of 30.
    assert int((counts[~torch.eye(4, dtype=torch.bool)] - 1000).abs().max()) < 150


def test_rows_draw_below_their_own_count() -> None:
    counts = torch.tensor([3, 10, 1000]).repeat(50)
    found = distinct(counts, 3, drawn_by(0))
    assert bool((found < counts.unsqueeze(1)).all())
    assert bool((found >= 0).all())
    assert torch.equal(found[::3].sort(1).values, torch.arange(3).expand(50, 3))


def domains() -> list[Dataset]:
    """Three domains of two classes with five samples each; a sample's number says which domain and class."""
    numbers = torch.arange(30.0).view(3, 2, 5)
    return [
        from_tensors(
            (each[:, :3].reshape(-1, 1), torch.tensor([0, 0, 0, 1, 1, 1])),
            (each[:, 3:].reshape(-1, 1), torch.tensor([0, 0, 1, 1])),
            name=name,
            classes=("bad", "good"),
        )
        for name, each in zip(("books", "films", "lenses"), numbers, strict=True)
    ]


def test_a_task_is_one_domain_whose_labels_keep_their_meaning() -> None:
    source = FewShot(domain_pool(domains()), ways=2, shots=2, queries=3, domains=True)
    assert source.pool.names[2:4] == ("films/bad", "films/good")
    assert source.labels == 2
    episodes = source.draw(90, drawn_by(0))
    samples = torch.cat([episodes.support, episodes.query], 1).squeeze(2).long()
    labels = torch.cat([episodes.support_targets, episodes.query_targets], 1)
    domain = samples[:, 0] // 10
    assert torch.equal(samples // 10, domain.unsqueeze(1).expand_as(samples))
    assert torch.equal(samples % 10 // 5, labels)
    assert episodes.classes is not None
    assert torch.equal(episodes.classes, torch.arange(2).expand(90, -1))
    assert all(len(row.unique()) == 10 for row in samples)
    # Each domain is expected 30 times with a deviation of 4.5.
    assert int((torch.bincount(domain, minlength=3) - 30).abs().max()) < 18
    same = source.draw(90, drawn_by(0))
    assert torch.equal(episodes.support, same.support)
    assert torch.equal(episodes.query, same.query)


def test_domains_that_differ_in_their_classes_are_refused() -> None:
    books, films, _ = domains()
    turned_round = replace(films, classes=("good", "bad"))
    with pytest.raises(InputError, match="films has the classes good, bad, and books bad, good: domains share"):
        domain_pool([books, turned_round])
    longer = from_tensors((torch.zeros(2, 3), torch.tensor([0, 1])), (torch.zeros(2, 3), torch.tensor([0, 1])))
    with pytest.raises(InputError, match=r"samples of tensors have the shape \(3,\), those of books \(1,\)"):
        domain_pool([books, longer])


def test_class_splits_share_nothing() -> None:
    parts = divide(pool(10), (5, 2, 3))
    names = [name for part in parts for name in part.names]
    assert sorted(names, key=int) == [str(each) for each in range(10)]
    for part in parts:
        for place, name in enumerate(part.names):
            held = part.inputs[part.starts[place] : part.starts[place] + part.counts[place], 0, 0, 0]
            assert torch.equal(held // 5, torch.full_like(held, int(name)))
    assert divide(pool(10), (5, 2, 3))[0].names == parts[0].names


def test_turned_pictures_are_classes_of_their_own() -> None:
    picture = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    picture[..., 0, 0] = 255
    four = turned(ClassPool(picture, torch.tensor([0]), torch.tensor([1]), ("a",)))
    assert four.names == ("a", "a 90°", "a 180°", "a 270°")
    corners = [four.inputs[four.starts[place]].flatten().tolist().index(255) for place in range(4)]
    assert corners == [0, 2, 3, 1]  # counter-clockwise
    with pytest.raises(InputError, match=r"square pictures, and the data has samples of shape \(1, 2, 3\)"):
        turned(ClassPool(torch.zeros(1, 1, 2, 3), torch.tensor([0]), torch.tensor([1]), ("a",)))


def test_light_and_dark_may_be_exchanged() -> None:
    plain, inverted = (FewShot(pool(), 2, inverted=each).draw(1, drawn_by(0)).support for each in (False, True))
    torch.testing.assert_close(plain, 1 - inverted)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InputError, match="ways = 7 is more than the 6 classes"):
        FewShot(pool(), ways=7)
    scarce = only(pool(), torch.tensor([2, 4]))
    scarce.counts[1] = 3
    with pytest.raises(InputError, match=r"class 4 has 3 samples, and shots \+ queries = 2 \+ 2 are needed of each"):
        FewShot(scarce, ways=2, shots=2, queries=2)
    with pytest.raises(InputError, match=r"9 \+ 2 classes are asked for, and the data has 6"):
        divide(pool(), (9, 2))


def test_sinusoids_are_sine_waves_of_one_height_and_phase_a_task() -> None:
    episodes = Sinusoids(shots=8, queries=40).draw(300, drawn_by(0))
    x, y = (
        torch.cat(each, 1).squeeze(2).double()
        for each in ((episodes.support, episodes.query), (episodes.support_targets, episodes.query_targets))
    )
    assert float(x.abs().max()) <= 5
    # a sin(x - p) = a cos(p) sin(x) - a sin(p) cos(x): two unknowns explain all 48 points of a task.
    basis = torch.stack([x.sin(), x.cos()], 2)
    found = torch.linalg.lstsq(basis, y.unsqueeze(2)).solution
    torch.testing.assert_close((basis @ found).squeeze(2), y, atol=1e-4, rtol=1e-4)
    heights = found.squeeze(2).norm(dim=1)
    assert 0.1 <= float(heights.min()) < 0.5
    assert 4.5 < float(heights.max()) <= 5.001
    assert float(found[:, 1].max()) < 1e-3  # phases of 0..pi have a sine that is not negative
