"""Task vectors without their tails: neither the smallest changes nor the largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.quantile import cuts
from lifelong.merging.rule import Array, Site, Stack, namespace
from lifelong.merging.rules.sparsified import Sparsified
from lifelong.merging.rules.ties import magnitudes, share_of
from lifelong.settings import setting


@dataclass(frozen=True)
class Breadcrumbs(Sparsified):
    """Add task vectors of which the share `gamma` of largest magnitude, and the smallest, are dropped.

    Davari and Belilovsky 2023, 2312.06795 (their beta is `gamma`). Of n numbers `int(density n)` are kept: the
    `int(gamma n)` largest are dropped, or fewer where no more are to be dropped at all, and then the smallest. Numbers
    equal to the largest or the least one kept are all kept.

    mergekit's drops a whole task vector where `int(gamma n)` is 0, in tensors of fewer than 100 numbers for instance;
    this drops none of its largest there.
    """

    paper: ClassVar[str] = "2312.06795"
    per_expert: ClassVar[tuple[str, ...]] = ("weight", "density", "gamma")

    gamma: float | tuple[float, ...] = setting(0.01, "share of the largest that is dropped, 0 to 1", ge=0, le=1)

    def limits(self, stack: Stack) -> list[tuple[float, float]]:
        """Return the least magnitude that is kept of each expert, and the largest."""
        size = stack.size
        keep = [share_of(size, self.of_expert("density", place)) for place in stack.places]
        gammas = [self.of_expert("gamma", place) for place in stack.places]
        top = [max(0, min(int(gamma * size), size - kept)) for gamma, kept in zip(gammas, keep, strict=True)]

        def twice(base: Array | None, experts: list[Array]) -> list[Array]:
            found = magnitudes(base, experts)
            return [*found, *found]

        least = [kept + dropped if kept else 0 for kept, dropped in zip(keep, top, strict=True)]
        found = cuts(stack, twice, [*least, *(dropped + 1 if dropped else 0 for dropped in top)])
        return list(zip(found[: len(keep)], found[len(keep) :], strict=True))

    def sparsify(self, vector: Array, limit: Any, site: Site) -> None:
        least, largest = limit
        magnitude = namespace(vector).abs(vector)
        vector *= (magnitude >= least) & (magnitude <= largest)


@dataclass(frozen=True)
class BreadcrumbsTIES(Breadcrumbs):
    """Breadcrumbs, added where they agree with the elected sign, as TIES does."""

    elects: ClassVar[bool] = True
