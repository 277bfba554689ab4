from __future__ import annotations

import pytest


@pytest.fixture
def undrawn(monkeypatch):
    """Charts beside the page are left out: drawing them takes seconds."""
    from lifelong.reports.chart import Chart

    monkeypatch.setattr(Chart, "drawn", lambda _: {})
