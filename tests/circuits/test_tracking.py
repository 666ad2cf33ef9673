"""Tracking mirrors numbers and never ends a run."""

from __future__ import annotations

import wandb

from circuits.tracking import track
from refusal.artefacts import ResultPaths, write_json
from refusal.config import Config, TrackingConfig


def test_tracking_is_off_by_default(tmp_path):
    assert not track(Config(), ResultPaths(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_offline_run_is_written_below_the_result_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    paths = ResultPaths(tmp_path)
    write_json(paths.saes("planted/modular") / "residuals_0" / "metrics.json", {"fvu": 0.2, "note": "x"})
    config = Config(models=("planted/modular",), tracking=TrackingConfig(wandb="offline"))
    assert track(config, paths)
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_a_tracker_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    def fail(**settings):
        raise wandb.errors.CommError("no network")

    monkeypatch.setattr(wandb, "init", fail)
    assert not track(Config(tracking=TrackingConfig(wandb="online")), ResultPaths(tmp_path))
    assert "no network" in caplog.text
