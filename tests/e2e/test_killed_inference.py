"""Inference that is killed again and again ends with the labels and activations of an undisturbed run."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time

import pytest
import torch

from refusal.artefacts import ResultPaths
from refusal.config import Config
from refusal.inference import stage as inference
from refusal.inference.stage import run_inference
from refusal.store import ActivationStore

MODEL = "planted/partial"
KILLS = 5


@pytest.fixture
def config(monkeypatch):
    """Return a run of many small shards, with all positions, offsets and means."""
    monkeypatch.setattr(inference, "SHARD_PROMPTS", 6)
    capture = {"sites": ["heads"], "positions": ["all", "mean", -2]}
    return Config(models=(MODEL,), num_samples_per_category=24, max_new_tokens=6, capture=capture)


def shards(paths):
    """Return how many shards say that they are complete."""
    return len(list(paths.activations(MODEL).glob("shard-*.json")))


def killed(config, paths, goal, seconds):
    """Run in a process of its own, killed so long after so many shards; return whether it was still at work."""
    process = multiprocessing.get_context("fork").Process(target=run_inference, args=(config, MODEL, paths))
    process.start()
    while shards(paths) < goal and process.is_alive():
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_five_kills_at_random_moments_change_nothing(config, tmp_path):
    whole, broken = ResultPaths(tmp_path / "whole"), ResultPaths(tmp_path / "broken")
    run_inference(config, MODEL, whole)
    moments = random.Random(0)
    kills = [(moments.randrange(8), moments.uniform(0, 0.03)) for _ in range(KILLS - 1)]
    done = []
    for n_more, seconds in kills:
        assert killed(config, broken, shards(broken) + n_more, seconds)
        done.append(shards(broken))
    killed(config, broken, shards(whole), 0.05)  # while labels are written, or just after
    assert 0 < done[0] < done[-1] < shards(whole)
    assert done == sorted(done), "no kill takes away what was done"
    run_inference(config, MODEL, broken)
    for of in (ResultPaths.refusal_labels, ResultPaths.model_outputs, ResultPaths.evaluation):
        assert of(broken, MODEL).read_bytes() == of(whole, MODEL).read_bytes()
    one, other = (ActivationStore(paths.activations(MODEL)) for paths in (whole, broken))
    assert one.prompt_ids == other.prompt_ids
    assert one.checksum == other.checksum
    for site in one.all_sites:
        for at in ("readout", *one.elsewhere):
            assert torch.equal(one.readout(site, at=at), other.readout(site, at=at))
