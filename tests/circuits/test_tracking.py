"""Tracking mirrors numbers and never ends a run."""

from __future__ import annotations

import pytest
import wandb

from circuits.tracking import track, training_points
from refusal.artefacts import ResultPaths, write_json
from refusal.config import Config, TrackingConfig
from refusal.sites import Site


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


def history(paths, model, site, seed, points, folder_seed=None):
    path = paths.sae(model, Site.parse(site), folder_seed) / f"{site}_training_history.json"
    write_json(path, {"model": model, "site": site, "seed": seed, "points": points})
    return path


def test_the_training_of_every_seed_is_yielded_by_step_in_order(tmp_path):
    paths = ResultPaths(tmp_path)
    point = {"lr": 0.1, "fvu_train": 0.3, "fvu_heldout": None, "l0": 4.0, "dead_share": 0.0}
    history(paths, "planted/modular", "residuals_0", 0, [{"step": 20, **point}, {"step": 10, **point}])
    history(paths, "planted/modular", "residuals_0", 7, [{"step": 10, **point, "fvu_train": 0.9}], folder_seed=7)
    found = list(training_points(Config(models=("planted/modular",)), paths))
    assert [step for step, _ in found] == [10, 20]
    prefix = "training/planted/modular/residuals_0"
    assert found[0][1][f"{prefix}/seed_0/fvu_train"] == 0.3
    assert found[0][1][f"{prefix}/seed_7/fvu_train"] == 0.9
    assert f"{prefix}/seed_0/fvu_heldout" not in found[0][1], "what is null is not a number"
    assert set(found[1][1]) == {f"{prefix}/seed_0/{key}" for key in ("lr", "fvu_train", "l0", "dead_share")}


class FakeRun:
    """Keeps what is logged."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.logged: list[dict[str, float]] = []
        self.summary: dict[str, object] = {}
        self.is_finished = False

    def define_metric(self, *names, **options):
        pass

    def log(self, values):
        if len(self.logged) == self.fails_at:
            raise RuntimeError("the tracker broke")
        self.logged.append(values)

    def finish(self):
        self.is_finished = True


@pytest.mark.parametrize("fails_at", [None, 0])
def test_history_and_metrics_are_logged_and_a_tracker_may_break_in_any_way(tmp_path, monkeypatch, caplog, fails_at):
    run = FakeRun(fails_at)
    monkeypatch.setattr(wandb, "init", lambda **settings: run)
    paths = ResultPaths(tmp_path)
    path = history(paths, "planted/modular", "residuals_0", 0, [{"step": 5, "l0": 4.0}])
    before = path.read_bytes()
    write_json(path.with_name("metrics.json"), {"d_sae": 56, "heldout": {"fvu": 0.2}, "site": "residuals_0"})
    config = Config(models=("planted/modular",), tracking=TrackingConfig(wandb="offline"))
    assert track(config, paths) is (fails_at is None)
    assert run.is_finished
    assert path.read_bytes() == before, "the history beside the SAE is the record"
    if fails_at is None:
        assert run.logged == [{"sae_step": 5, "training/planted/modular/residuals_0/seed_0/l0": 4.0}]
        assert run.summary["planted/modular/sae/residuals_0/heldout.fvu"] == 0.2
        assert "planted/modular/sae/residuals_0/site" not in run.summary
    else:
        assert "the tracker broke; the results are complete without it" in caplog.text
