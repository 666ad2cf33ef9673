"""SAE training that is killed goes on where its last checkpoint stood, and ends with the same bytes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time

import yaml

from circuits.job import main
from refusal.artefacts import ResultPaths

MODEL = "planted/monolithic"
RUN = "from circuits.job import main; from refusal.sae import checkpoint; checkpoint.SECONDS = 0; main({arguments!r})"


def test_a_training_killed_after_a_checkpoint_ends_with_the_same_bytes(tmp_path, caplog):
    path = tmp_path / "run.yaml"
    settings = {
        "models": [MODEL],
        "num_samples_per_category": 12,
        "max_new_tokens": 8,
        "stages": ["inference", "saes"],
        "activation_layers": ["residuals_1"],
        "sae": {"seeds": [0, 1], "steps": 1500, "d_sae": 64, "k": 4, "stability_halves": False},
    }
    path.write_text(yaml.safe_dump(settings))
    undisturbed, killed = (["--config", str(path), "--result-dir", str(tmp_path / name)] for name in ("one", "two"))
    assert main(undisturbed) == 0
    folder = ResultPaths(tmp_path / "two").saes(MODEL)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", RUN.format(arguments=killed)], env=environment)
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoint_*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() < 0, "it was done before it could be killed"
    assert not list(folder.rglob("metrics.json"))
    with caplog.at_level(logging.INFO, "refusal"):
        assert main(killed) == 0
    assert "residuals_1: going on from step" in caplog.text
    assert not list(folder.glob("checkpoint_*"))
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            same = ResultPaths(tmp_path / "one").saes(MODEL) / file.relative_to(folder)
            assert file.read_bytes() == same.read_bytes(), file
