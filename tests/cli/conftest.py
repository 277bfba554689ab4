"""Models on disk that commands merge."""

from __future__ import annotations

from pathlib import Path

import pytest
from merging.models import tensors, write


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, which holds a base and two experts of it."""
    base = tensors(0)
    write(tmp_path / "base", base)
    for seed, name in enumerate("ab", 1):
        write(tmp_path / name, tensors(seed, base))
    monkeypatch.chdir(tmp_path)
    return tmp_path
