"""A run that is killed, interrupted, out of room or out of memory ends, taken up again, as an undisturbed one does."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from circuits import circuit_stage, compare_stage, report
from circuits.job import main
from refusal import artefacts
from refusal.artefacts import ResultPaths
from refusal.inference import behaviour
from refusal.inference import stage as inference
from refusal.sae import checkpoint, training
from refusal.stages import signatures

MODEL = "planted/partial"
STAGES = ("inference", "saes", "circuits", "compare", "report")
SMALL = {
    "models": [MODEL],
    "categories": ["violence", "privacy"],
    "num_samples_per_category": 24,
    "max_new_tokens": 6,
    "activation_layers": ["residuals_1", "residuals_2"],
    "sae": {"seeds": [0], "steps": 40, "d_sae": 32, "k": 4, "stability_halves": False},
    "analysis": {"bootstrap": 100, "permutations": 20},
}
FORK = multiprocessing.get_context("fork")


def command(root: Path, *flags: str) -> list[str]:
    path = root.parent / f"{root.name}.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "result_dir": str(root)}))
    return ["--config", str(path), *flags]


def results(root: Path) -> dict[str, bytes]:
    """Return what every stage wrote but records, manifest and time; of pictures that they are there."""
    kept = ("activations", "circuits", "evaluation_results", "model_outputs", "refusal_labels", "saes")
    found = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
    page = {name: b"" for name in found if name.startswith("visualizations") or name == "report.html"}
    return page | {name: path.read_bytes() for name, path in found.items() if name.split("/")[0] in kept}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the result folder of an undisturbed run."""
    root = tmp_path_factory.mktemp("whole") / "results"
    assert main(command(root)) == 0
    assert json.loads(ResultPaths(root).comparison(MODEL).read_text())["verdict"] == "MODULAR"
    return root


@pytest.fixture
def root(tmp_path):
    return tmp_path / "results"


def without_stages_from(stage: str, whole: Path, root: Path) -> None:
    """Copy a run as it is just before a stage: what the later ones wrote is there, their records are not."""
    shutil.copytree(whole, root)
    for later in STAGES[STAGES.index(stage) :]:
        for record in (root / "stages").glob(f"{later}*"):
            record.unlink()
    if stage == "inference":
        shutil.rmtree(root / "activations")
    if stage in ("inference", "saes"):
        shutil.rmtree(root / "saes")


# Kills and interruptions ----------------------------------------------------------------------------------------------


def start(words: list[str]) -> multiprocessing.Process:
    """Run in a process of its own, which ends with the status of the command."""

    def work():
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.dup2(null, 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        os._exit(main(words))

    process = FORK.Process(target=work)
    process.start()
    return process


def wait_for(is_there, process) -> bool:
    """Wait until something is there; return whether the process still runs then."""
    while not is_there() and process.is_alive():
        time.sleep(0.001)
    return process.is_alive()


def test_five_random_kills_in_one_run_then_a_plain_run_give_the_same_verdict_and_numbers(whole, root, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    moments, killed = random.Random(1), 0
    signs = {
        "inference": lambda: list(root.glob("activations/*/shard-*")),
        "saes": lambda: list(root.glob("saes/*/checkpoint_*")) or list(root.glob("saes/*/*/cfg.json")),
        "circuits": lambda: list(root.glob("circuits/*attributions*")),
        "compare": lambda: list(root.glob("stages/circuits_*")),
        "report": lambda: list(root.glob("visualizations/*")),
    }
    for sign in signs.values():
        process = start(command(root))
        wait_for(sign, process)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 4
    assert main(command(root)) == 0
    assert results(root) == results(whole)
    assert not list(root.rglob(".*")), "no lock and no part of a file is left"


@pytest.mark.parametrize(
    ("stage", "number"),
    [*((stage, signal.SIGINT) for stage in STAGES), ("inference", signal.SIGTERM), ("saes", signal.SIGTERM)],
)
def test_an_interruption_in_any_stage_ends_with_130_and_the_same_command_resumes(whole, root, stage, number):
    without_stages_from(stage, whole, root)
    process = start_stopped_in(stage, command(root), number)
    process.join()
    assert process.exitcode == 130
    assert not list(root.rglob(".lock*"))
    assert not list((root / "stages").glob(f"{stage}*")), "a stage that was interrupted is not done"
    if (stage, number) == ("saes", signal.SIGTERM):
        assert main(command(root)) == 0
        assert results(root) == results(whole)


def start_stopped_in(stage: str, words: list[str], number: int) -> multiprocessing.Process:
    """Run in a process of its own that gets a signal in the midst of a stage, as from a terminal or a scheduler."""
    places = {
        "inference": (inference, "capture"),
        "saes": (training, "train_stack"),
        "circuits": (circuit_stage, "attribute"),
        "compare": (compare_stage, "measure_transfer"),
        "report": (report, "summary_text"),
    }
    module, name = places[stage]
    original = getattr(module, name)

    def stopped(*args, **kwargs):
        os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    def work():
        setattr(module, name, stopped)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(main(words))

    process = FORK.Process(target=work)
    process.start()
    return process


def test_of_two_runs_in_one_folder_one_is_refused_and_the_other_undisturbed(whole, root):
    first = start(command(root))
    assert wait_for((root / ".lock").exists, first)
    second = start(command(root))
    second.join()
    first.join()
    assert (first.exitcode, second.exitcode) == (0, 2)
    assert results(root) == results(whole)


# No room --------------------------------------------------------------------------------------------------------------


class FullDisk:
    """Lets the first few files be written, and then no more."""

    def __init__(self, monkeypatch, writes: int) -> None:
        self.left, self.refused = writes, ""
        original = os.fsync

        def fsync(handle):
            self.left -= 1
            if self.left < 0:
                self.refused = os.readlink(f"/proc/self/fd/{handle}")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(handle)

        monkeypatch.setattr(artefacts.os, "fsync", fsync)


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_up_in_any_stage_is_told_with_the_file_and_the_same_command_resumes(
    whole, root, stage, monkeypatch, capsys
):
    without_stages_from(stage, whole, root)
    before = results(root)
    writes = {"inference": 2, "saes": 1, "circuits": 1, "compare": 0, "report": 1}[stage]
    disk = FullDisk(monkeypatch, writes)
    assert main(command(root)) == 2
    said = capsys.readouterr().err
    name = Path(disk.refused).name.partition(".partial.")[2]
    assert f"No space left on device: '{next(iter(root.rglob(name)), root / name).parent}" in said or name in said
    assert "what was complete is kept, the same command resumes" in said
    assert "Traceback" not in said
    after = results(root)
    assert all(name in after for name in before if not name.startswith(("activations", "saes")))
    assert not list(root.rglob(".*.partial.*"))
    monkeypatch.undo()
    assert main(command(root, "--stages", stage)) == 0
    assert ResultPaths(root).stage_record(stage, None if stage == "report" else MODEL).exists()
    assert {name: it for name, it in results(root).items() if name in after or name in before} == {
        name: it for name, it in results(whole).items() if name in after or name in before
    }


def test_a_limit_of_the_system_on_the_size_of_files_is_told_with_the_file(whole, root):
    read, write = os.pipe()

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with os.fdopen(write, "w") as sys.stderr:
            status = main(command(root))
        os._exit(status)

    process = FORK.Process(target=work)
    process.start()
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    process.join()
    assert process.exitcode == 2, said
    assert "shard-00000.safetensors" in said
    assert "File too large" in said
    assert "Traceback" not in said
    assert main(command(root)) == 0
    assert results(root) == results(whole)


# Memory, rights and clocks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "module", "name", "error"),
    [
        ("inference", inference, "capture", torch.OutOfMemoryError("CUDA out of memory.")),
        ("inference", behaviour, "learn_openers", MemoryError()),
        ("saes", training, "train_stack", RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")),
        ("circuits", circuit_stage, "attribute", torch.OutOfMemoryError("CUDA out of memory.")),
        ("compare", compare_stage, "measure_transfer", MemoryError("Unable to allocate 9 TiB")),
    ],
)
def test_memory_that_runs_out_is_told_and_loses_nothing(whole, root, monkeypatch, capsys, stage, module, name, error):
    without_stages_from(stage, whole, root)

    def out_of_memory(*args, **kwargs):
        raise error

    monkeypatch.setattr(module, name, out_of_memory)
    assert main(command(root)) == 2
    said = capsys.readouterr().err
    assert "memory ran out" in said
    assert "batch_size" in said
    assert "Traceback" not in said
    assert {path.name for path in (root / "stages").iterdir()} == {
        f"{earlier}_planted__partial.json" for earlier in STAGES[: STAGES.index(stage)]
    }


def test_a_forward_that_runs_out_of_memory_runs_in_smaller_batches_to_the_same_results(whole, root, monkeypatch):
    original, largest = inference.capture, 10

    def capture(model, batch, *rest):
        if len(batch) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(model, batch, *rest)

    monkeypatch.setattr(inference, "capture", capture)
    assert main(command(root, "--stages", "inference")) == 0
    labels = ResultPaths.refusal_labels
    assert json.loads(labels(ResultPaths(root), MODEL).read_text())["prompts"][0]["behaviour"]
    said = [{key: prompt[key] for key in ("id", "behaviour", "rule")} for prompt in read_labels(root)]
    assert said == [{key: prompt[key] for key in ("id", "behaviour", "rule")} for prompt in read_labels(whole)]


def read_labels(root: Path) -> list[dict[str, object]]:
    return json.loads(ResultPaths(root).refusal_labels(MODEL).read_text())["prompts"]


def test_models_and_prompts_may_be_read_only(whole, root, tmp_path, llama_folder):
    from refusal.prompts.embedded import data_dir

    for source, name in ((llama_folder, "model"), (data_dir(), "data")):
        shutil.copytree(source, tmp_path / name)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for path in (
        *(tmp_path / "model").rglob("*"),
        *(tmp_path / "data").rglob("*"),
        tmp_path / "model",
        tmp_path / "data",
    ):
        path.chmod(0o555 if path.is_dir() else 0o444)
    flags = ["--set", f"models=[{tmp_path / 'model'}]", "--set", f"dataset_dir={tmp_path / 'data'}"]
    assert main(command(root, *flags, "--stages", "inference")) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for folder in ("model", "data"):
        (tmp_path / folder).chmod(0o755)


@pytest.mark.parametrize("shift", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_clock_that_jumps_makes_nothing_stale_fresh_nor_anything_fresh_stale(whole, root, shift, caplog):
    shutil.copytree(whole, root)
    for path in root.rglob("*"):
        os.utime(path, (time.time() + shift, time.time() + shift))
    with caplog.at_level("INFO", "refusal"):
        assert main(command(root)) == 0
    assert caplog.text.count("up to date") == len(STAGES)
    caplog.clear()
    changed = ResultPaths(root).refusal_labels(MODEL)
    times = changed.stat()
    changed.write_bytes(changed.read_bytes().replace(b"complied", b"refused_", 1))
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    signatures._digest.cache_clear()
    with caplog.at_level("INFO", "refusal"):
        assert main(command(root)) == 0
    assert "refusal_labels/planted__partial.json is missing or changed" in caplog.text
    assert results(root) == results(whole)
