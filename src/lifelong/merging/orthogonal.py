"""OPCM: experts are added one at a time, each without what lies in the main directions of those before it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lifelong import tree
from lifelong.merging.linear_algebra import singular, supported
from lifelong.tree import Params


@dataclass
class Projected:
    """A merge under way by orthogonal projection (`lifelong.merging.incremental.Incremental`).

    OPCM, Tang et al. 2025, 2501.09522. In our symbols, with `S_t` the running sum and `n_t` the mean norm of the task
    vectors so far: `S_1 = tau_1`, `S_t = S_{t-1} + P(tau_t)`, `theta = theta_0 + n_t S_t / ||S_t||`. Their scale
    `lambda_t` of eq. 6 is `||S_t|| / n_t`. For a matrix, `P` leaves out the block of the leading singular directions
    of `S_{t-1}` on both sides, as many as hold at most the share `alpha` of the sum of its singular values, and the
    pairs `u_i v_i^T` behind them; other tensors are added as they are. So `P(tau) = 0` for a matrix that is a multiple
    of `S_{t-1}`: what is known is not added again.

    Our deviation: singular vectors whose value is rounding are an accident of the library, and nothing is left out
    along them.

    Args:
        alpha: share of the singular values whose directions are closed to later experts, 0 to 1; 0.5 in the paper.
        total: `S_t`, in at least float32.
        norms: sum of the norms of the task vectors.
        count: of the experts in it.
    """

    alpha: float
    total: Params = field(default_factory=dict)
    norms: float = 0.0
    count: int = 0

    @torch.no_grad()
    def add(self, base: Params, expert: Params, statistics: Params) -> None:
        change = {name: (expert[name] - start).to(tree.wide(start)) for name, start in base.items()}
        self.norms += float(tree.norm(change))
        self.count += 1
        if not self.total:
            self.total = change
            return
        for name, new in change.items():
            total = self.total[name]
            total += projected(new, total, self.alpha) if new.ndim == 2 else new

    def merged(self, base: Params) -> Params:
        length = float(tree.norm(self.total))
        factor = self.norms / self.count / length if length > 0 else 0.0
        return {
            name: (start.to(self.total[name].dtype) + factor * self.total[name]).to(start.dtype)
            for name, start in base.items()
        }


def projected(change: Tensor, total: Tensor, alpha: float) -> Tensor:
    """Return `P(change)`, what an expert adds to a matrix `total` `[m, n]` that is there.

    `change - U_r U_r^T change V_r V_r^T - sum_{i > r} (u_i^T change v_i) u_i v_i^T`, r the greatest number of leading
    singular values of `total` whose sum is at most `alpha` times that of all.
    """
    left, values, right = supported(singular(total)) if total.any() else singular(total).first(0)
    closed = int((values.cumsum(0) <= alpha * values.sum()).sum())
    inner = left.T @ change @ right.T
    taken = inner.diagonal().diag()
    taken[:closed, :closed] = inner[:closed, :closed]
    kept: Tensor = change - left @ taken @ right
    return kept
