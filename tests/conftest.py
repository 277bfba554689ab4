"""Every test decodes into a cache of its own, and none touches the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # One for the session: MNIST takes seconds to decode, and tests of the cache itself set their own.
    monkeypatch.setenv("LIFELONG_CACHE", str(Path(tmp_path_factory.getbasetemp()) / "cache"))


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """A run sets the number of threads of its process; the next test should not feel it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
