"""Exact per-sample curvature at about the price of one backward pass."""

from __future__ import annotations

from lifelong.curvature.importance import fisher, mas, scp
from lifelong.curvature.kernel import kernels
from lifelong.curvature.per_sample import per_sample_moments

__all__ = ["fisher", "kernels", "mas", "per_sample_moments", "scp"]
