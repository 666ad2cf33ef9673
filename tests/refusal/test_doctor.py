"""The doctor names what is missing, one line each with the fix, and ends in no traceback however broken things are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from local_hub import TOKEN, local_hub

from refusal.doctor import hub, machine, study
from refusal.doctor.findings import Check, Level, closing_line, examine, ok, problem, warning

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"(ok|warning|problem) +(\S+) +\S.*")


def doctor(*arguments, python=(), cwd=None, **variables):
    """Run the command as a user would; variables that are None are taken away."""
    environment = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    command = [sys.executable, *python, "-m", "refusal.doctor", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False, cwd=cwd)
    assert done.stderr == ""
    assert all(LINE.fullmatch(line) for line in done.stdout.splitlines()[:-1]), done.stdout
    return done


def said(findings):
    """Return findings as (level, text)."""
    return [(str(each.level), each.text) for each in findings]


@pytest.fixture
def hf_home(tmp_path, monkeypatch):
    """Return an empty HF_HOME that the hub's library uses."""
    home = tmp_path / "hf"
    (home / "hub").mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_CACHE", "SCRATCH"):
        monkeypatch.delenv(name, raising=False)
    return home


# The command ---------------------------------------------------------------------------------------------------------


def test_a_machine_that_can_run_the_quickstart_gives_zero_and_each_topic_one_line(tmp_path):
    config = ROOT / "configurations" / "quickstart.yaml"
    done = doctor("--config", config, "--result-dir", tmp_path / "results")
    assert done.returncode == 0, done.stdout
    topics = [LINE.fullmatch(line)[2] for line in done.stdout.splitlines()[:-1]]
    assert {"python", "packages", "torch", "memory", "disk", "HF_HOME", "token", "scheduler", "data", "model"} <= {
        *topics
    }
    assert topics.count("model") == 3
    assert not (tmp_path / "results").exists(), "it looks, it makes nothing"


def test_what_a_configuration_lacks_is_told_all_at_once_and_gives_two(tmp_path):
    config = tmp_path / "run.yaml"
    models = ["planted/modular", "planted/modula", str(tmp_path / "none"), "meta-llama/Llama-2-7b-chat-hf"]
    config.write_text(json.dumps({"models": models, "dataset_dir": "nowhere", "result_dir": str(tmp_path)}))
    done = doctor("--config", config, HF_HOME=str(tmp_path / "hf"), HF_HUB_CACHE=None, HF_TOKEN=None)
    assert done.returncode == 2
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem")]
    assert [re.sub(r" +", " ", line)[:40].split("; ")[0] for line in problems] == [
        "problem data dataset_dir: 'nowhere' does",
        "problem model models: no shipped model i",
        "problem model models: " + f"{tmp_path}"[:18],
        "problem model meta-llama/Llama-2-7b-chat",
    ]
    assert "did you mean planted/modular?" in problems[1]
    assert "hf download meta-llama/Llama-2-7b-chat-hf (first accept its licence at" in problems[3]
    assert re.search(r"\n4 problems, \d warnings?\n$", done.stdout), "the token that a gated model needs is missing"


def test_a_configuration_with_mistakes_is_one_line_for_each(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("sede: 1\nbatch_size: many\n")
    done = doctor("--config", config)
    assert done.returncode == 2
    assert [line.split(None, 2)[2] for line in done.stdout.splitlines() if line.startswith("problem")] == [
        f"{config}:1: sede: unknown key; did you mean seed?",
        f"{config}:2: batch_size: found 'many'; allowed is auto or a whole number of at least 1",
    ]


def test_a_python_without_any_package_gets_a_list_and_no_traceback(tmp_path):
    # an installation in place leaves its metadata in the project's folder
    done = doctor(python=("-S",), cwd=tmp_path, PYTHONPATH=str(ROOT / "src"))
    assert done.returncode == 2
    assert re.search(r"^problem +packages +refusal-circuits itself is not installed; .*pip install", done.stdout, re.M)
    assert re.search(r"^problem +torch +cannot be imported \(No module named 'torch'\); run: ", done.stdout, re.M)
    assert re.search(r"^problem +data +could not be checked \(ModuleNotFoundError", done.stdout, re.M)


# The hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub_address():
    """Return the address of a hub of our own."""
    with local_hub() as found:
        yield found


def test_online_the_hub_is_asked_for_the_token_and_each_model_and_the_token_is_never_shown(tmp_path, hub_address):
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"models": ["open/model", "meta-llama/gated", "mispelled/model"]}))
    variables = {"HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN, "HF_ENDPOINT": hub_address, "HF_HUB_OFFLINE": None}
    done = doctor("--config", config, "--result-dir", tmp_path / "r", "--online", **variables)
    assert done.returncode == 2
    found = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert f"ok network {hub_address} can be reached" in found
    assert "ok token the hub takes it" in found
    assert "ok access open/model may be downloaded" in found
    assert any(re.match(r"problem access meta-llama/gated is gated, .*; accept the licence at", line) for line in found)
    assert any(line.startswith("problem access mispelled/model is not on the hub; check the") for line in found)
    assert TOKEN not in done.stdout


def test_a_token_that_the_hub_does_not_take_is_a_problem_and_is_not_shown(hf_home, hub_address, monkeypatch):
    wrong = TOKEN[:-1]
    monkeypatch.setenv("HF_TOKEN", wrong)
    monkeypatch.setattr(constants, "ENDPOINT", hub_address)
    _, token, model = said(hub.check_online([("open/model", None)]))
    assert (token[0], "the hub does not take it; make a new one" in token[1]) == ("problem", True)
    assert model[0] == "ok"
    assert wrong not in token[1]


def test_without_network_the_address_is_named_and_nothing_else_is_asked(monkeypatch, hf_home):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("http_proxy", raising=False)
    (found,) = hub.check_online([("open/model", None)])
    assert found.text.startswith("problem  network    http://127.0.0.1:9 cannot be reached (")
    assert "leave --online away" in found.fix


def test_models_that_were_downloaded_beside_the_cache_are_found_with_the_command_that_moves_them(hf_home):
    (hf_home / "models--a--b").mkdir()
    (found,) = hub.check_cache()
    assert found.level is Level.PROBLEM
    assert f"mv '{hf_home}'/models--* '{hf_home}/hub'/" in found.fix


def test_a_cut_download_and_a_cache_in_a_small_home_are_warned_of(hf_home, monkeypatch):
    blobs = hf_home / "hub" / "models--meta-llama--Llama" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").touch()
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", str(hf_home.parent))
    levels_and_texts = said(hub.check_cache())
    assert [level for level, _ in levels_and_texts] == ["warning", "warning"]
    assert "downloads were cut: meta-llama/Llama" in levels_and_texts[0][1]
    assert "export HF_HOME=/scratch/me/huggingface" in levels_and_texts[1][1]


@pytest.mark.parametrize(
    ("content", "mode", "level", "expected"),
    [
        (TOKEN, 0o600, "ok", "found in"),
        (TOKEN + "\n", 0o600, "ok", "found in"),
        (TOKEN, 0o644, "warning", "can be read by others; run: chmod 600"),
        ("password", 0o600, "warning", "does not look like one; copy it again"),
        (f'"{TOKEN}"', 0o600, "warning", "does not look like one"),
    ],
)
def test_a_token_file_is_judged_and_never_shown(hf_home, content, mode, level, expected):
    path = hf_home / "token"
    path.write_text(content)
    path.chmod(mode)
    ((found, text),) = said(hub.check_token([]))
    assert (found, expected in text) == (level, True)
    assert content.strip() not in text


def test_a_token_is_asked_for_only_where_a_model_is_gated(hf_home):
    ((level, text),) = said(hub.check_token(["mistralai/Mistral-7B-Instruct-v0.3", "Qwen/Qwen2.5-0.5B-Instruct"]))
    assert (level, "hf auth login" in text) == ("warning", True)
    assert "without one mistralai/Mistral-7B-Instruct-v0.3 cannot be downloaded" in text
    assert said(hub.check_token(["Qwen/Qwen2.5-0.5B-Instruct"]))[0][0] == "ok"


def test_a_model_whose_index_names_files_that_are_not_there_is_not_whole(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-1.safetensors").touch()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    ((level, text),) = said(hub.check_model("mine", str(tmp_path), None))
    assert (level, "mine: 1 weight files are missing, e.g. model-2.safetensors" in text) == ("problem", True)
    (tmp_path / "model-2.safetensors").touch()
    assert said(hub.check_model("mine", str(tmp_path), None))[0][0] == "ok"


# The machine ---------------------------------------------------------------------------------------------------------


def test_a_disk_is_judged_by_what_is_needed_and_by_what_is_advised(tmp_path, monkeypatch):
    folder = tmp_path / "not" / "made"
    for free, needed, level in ((40 << 30, 0, "ok"), (1 << 30, 0, "warning"), (1 << 30, 2 << 30, "problem")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path, free=free: type("Usage", (), {"free": free}))
        ((found, text),) = said(machine.check_disk("results", folder, needed))
        assert (found, f"{free / (1 << 30):.1f} GiB free" in text) == (level, True)
    assert not folder.exists()


def test_a_folder_that_is_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    ((level, text),) = said(machine.check_disk("results", tmp_path / "file" / "results"))
    assert (level, "cannot be written" in text) == ("problem", True)


def test_memory_is_judged_by_what_is_needed(monkeypatch):
    monkeypatch.setattr(machine, "memory_bytes", lambda: 8 << 30)
    assert said(machine.check_memory())[0][0] == "ok"
    ((level, text),) = said(machine.check_memory(14 << 30))
    assert (level, "8.0 GiB available, 14.0 GiB needed" in text) == ("warning", True)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1 << 30)
    assert said(machine.check_memory())[0][0] == "warning"


def test_the_memory_of_this_machine_is_no_more_than_it_has():
    assert 0 < machine.memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_an_old_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(machine, "LEAST_PYTHON", (9, 0))
    ((level, text),) = said(machine.check_python())
    assert (level, "is older than 9.0" in text) == ("problem", True)


def test_packages_are_compared_with_what_the_project_asks_for(monkeypatch):
    asked = ["numpy>=1", "nothing-of-the-kind>=2", "torch<1", "pytest; extra == 'dev'", "ghost; extra == 'dev'"]
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: asked)
    ((level, text),) = said(machine.check_packages())
    assert level == "problem"
    assert re.search(r"nothing-of-the-kind is missing, torch is \S+, needed is <1; run: .*pip install", text)
    assert "ghost" not in text


def test_cuda_that_is_wanted_and_not_there_is_a_problem(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: False)
    assert [said(machine.check_torch(wants))[0][0] for wants in (False, True)] == ["ok", "problem"]
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: True)
    for version, expected in ((None, "is a CPU build"), ("12.8", "for CUDA 12.8 cannot use")):
        monkeypatch.setattr(torch.version, "cuda", version)
        levels = [said(machine.check_torch(wants))[0] for wants in (False, True)]
        assert [level for level, _ in levels] == ["warning", "problem"]
        assert expected in levels[0][1]


@pytest.mark.parametrize("program", ["sbatch", "qsub"])
def test_a_scheduler_is_found_by_its_command_and_asked_for_its_version(tmp_path, monkeypatch, program):
    path = tmp_path / program
    path.write_text("#!/bin/sh\necho 'version 1.2'\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    name = {"sbatch": "slurm", "qsub": "pbs"}[program]
    (text,) = [each.text for each in machine.check_scheduler() if name in each.found]
    assert f"{name}: {path} (version 1.2); python jobs/submit.py --scheduler {name}" in text


def test_without_a_scheduler_the_local_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "--scheduler local" in next(iter(machine.check_scheduler())).found


# Findings ------------------------------------------------------------------------------------------------------------


def test_a_check_that_breaks_is_a_finding_and_the_next_one_runs():
    def breaks():
        raise OSError("two\nlines")
        yield

    found = list(examine([Check("disk", breaks), Check("torch", lambda: [ok("torch", "fine")])]))
    assert [each.level for each in found] == [Level.PROBLEM, Level.OK]
    assert found[0].text.startswith("problem  disk       could not be checked (OSError: two lines); ")


def test_the_last_line_counts():
    assert closing_line([problem("a", "b", "c"), problem("a", "b", "c"), warning("a", "b", "c")]) == (
        "2 problems, 1 warning"
    )


def test_what_ships_with_the_package_is_whole():
    assert [each.level for each in study.check_shipped()] == [Level.OK]
