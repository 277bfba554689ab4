"""Small networks that curvature finds hard: layers called twice, weights in two places."""

from __future__ import annotations

from torch import Tensor, nn


class Twice(nn.Module):
    """One layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.shared(self.shared(inputs).tanh()).tanh())


class Tied(nn.Module):
    """An embedding whose table is the output layer's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6)
        self.out.weight = self.embed.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.embed(inputs).tanh().mean(1))
