"""Fixtures of the hostile corpus."""

from __future__ import annotations

import huggingface_hub.constants
import pytest
from yard import Yard


@pytest.fixture
def offline(monkeypatch):
    """Let no hub be asked."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def seeds(request):
    """Return the seeds of the campaign."""
    return range(request.config.getoption("--hostile-seeds"))


@pytest.fixture
def yard(tmp_path, monkeypatch, capsys):
    """Return a yard, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    return Yard(tmp_path, capsys)
