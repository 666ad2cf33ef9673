"""Parts of a run on separate machines, put together, give what one run gives, byte for byte."""

from __future__ import annotations

import json
import os
import socket

import pytest
import yaml

from circuits.job import inference_main, main
from refusal.artefacts import ResultPaths
from refusal.capture import capture
from refusal.inference import stage as inference
from refusal.inference.answer_prefix import note_prefix
from refusal.schemas import RefusalLabels

MODEL = "planted/partial"
OUTPUTS = ("activations", "refusal_labels", "model_outputs", "evaluation_results")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(inference, "SHARD_PROMPTS", 10)


@pytest.fixture
def config(tmp_path):
    settings = {"models": [MODEL], "num_samples_per_category": 4, "max_new_tokens": 8, "result_dir": "unused"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return ["--config", str(tmp_path / "run.yaml")]


def files_under(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in OUTPUTS
        for path in (folder / name).rglob("*")
        if path.is_file()
    }


def n_shards(folder):
    return len(list(ResultPaths(folder).activations(MODEL).glob("shard-*.json")))


def test_three_shards_and_a_merge_give_the_bytes_of_one_run(config, tmp_path, monkeypatch, capsys):
    one, parts = tmp_path / "one", tmp_path / "parts"
    assert inference_main([*config, "--result-dir", str(one)]) == 0
    command = [*config, "--result-dir", str(parts)]
    for number in (3, 1):
        assert inference_main([*command, "--shard", f"{number}/3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"Shard 1/3 of inference is in {parts}. When all 3 are done, run: "
        f"python src/run_inference.py --config {tmp_path / 'run.yaml'} --result-dir {parts} --merge"
    )
    assert sorted(path.name for path in parts.iterdir()) == ["activations"], "neither record nor manifest nor lock"

    assert inference_main([*command, "--merge"]) == 2
    said = capsys.readouterr().err
    assert "1 of 4 shards are not there" in said
    assert "shard-00001; run: python src/run_inference.py --config FILE --shard 2/3; then --merge again" in said

    assert inference_main([*command, "--shard", "2/3"]) == 0

    def never(*arguments):
        raise AssertionError("a merge runs no prompt")

    for module in ("inference.stage", "inference.answer_prefix"):
        monkeypatch.setattr(f"refusal.{module}.capture", never)
    assert inference_main([*command, "--merge"]) == 0
    assert files_under(parts) == files_under(one)
    outputs = [json.loads((each / "stages" / "inference_planted__partial.json").read_text()) for each in (one, parts)]
    assert outputs[0]["outputs"].keys() == outputs[1]["outputs"].keys()
    assert inference_main([*command, "--shard", "1/3"]) == 0
    assert "inference of planted/partial: up to date" in capsys.readouterr().err


def test_the_plain_command_computes_what_shards_have_left(config, tmp_path, monkeypatch):
    one, parts = tmp_path / "one", tmp_path / "parts"
    assert inference_main([*config, "--result-dir", str(one)]) == 0
    command = [*config, "--result-dir", str(parts)]
    assert inference_main([*command, "--shard", "1/2"]) == 0
    assert n_shards(parts) == 2
    captured = []

    def counted(model, token_ids, *rest):
        captured.append(len(token_ids))
        return capture(model, token_ids, *rest)

    monkeypatch.setattr(inference, "capture", counted)
    assert inference_main(command) == 0
    assert sum(captured) == 20
    assert files_under(parts) == files_under(one)


def test_a_merge_knows_what_was_moved_into_the_prompts_and_says_so(config, tmp_path, monkeypatch):
    def moved(model, *rest):
        note_prefix(model, (5,))
        return (5,)

    monkeypatch.setattr(inference, "shared_answer_prefix", moved)
    one, parts = ["--result-dir", str(tmp_path / "one")], ["--result-dir", str(tmp_path / "parts")]
    assert inference_main([*config, *one]) == 0
    for number in (1, 2):
        assert inference_main([*config, *parts, "--shard", f"{number}/2"]) == 0
    assert inference_main([*config, *parts, "--merge"]) == 0
    assert files_under(tmp_path / "parts") == files_under(tmp_path / "one")
    labels = RefusalLabels.load(ResultPaths(tmp_path / "parts").refusal_labels(MODEL))
    assert any("it was moved into the prompt" in notice for notice in labels.notices)


def test_a_merge_without_any_shard_names_the_plain_command(config, tmp_path, capsys):
    assert inference_main([*config, "--result-dir", str(tmp_path / "none"), "--merge"]) == 2
    said = capsys.readouterr().err
    assert "4 of 4 shards are not there" in said
    assert "run: python src/run_inference.py --config FILE; then --merge again" in said


def test_shards_of_another_dtype_are_not_put_together(config, tmp_path, capsys):
    command = [*config, "--result-dir", str(tmp_path / "r")]
    assert inference_main([*command, "--shard", "1/1"]) == 0
    assert inference_main([*command, "--merge", "--set", "dtype=bfloat16"]) == 2
    assert "4 of 4 shards are not there, or were made of other prompts, settings or weights or in another dtype" in (
        capsys.readouterr().err
    )


def test_the_same_shard_twice_at_once_is_refused(config, tmp_path, capsys):
    command = [*config, "--result-dir", str(tmp_path / "r")]
    (tmp_path / "r").mkdir()
    lock = tmp_path / "r" / ".lock.shard-of-3-2"
    lock.write_text(f"{socket.gethostname()} {os.getppid()}")
    assert inference_main([*command, "--shard", "2/3"]) == 2
    assert "is in use by shard 2/3" in capsys.readouterr().err
    assert inference_main(command) == 2
    assert "is in use by shard 2/3" in capsys.readouterr().err
    assert inference_main([*command, "--shard", "1/3"]) == 0
    assert lock.exists()


@pytest.mark.parametrize(
    ("run", "flags", "said"),
    [
        (inference_main, ["--shard", "0/3"], "--shard: found '0/3'; allowed is i/n with i from 1 to n"),
        (inference_main, ["--shard", "4/3"], "--shard: found '4/3'; allowed is i/n"),
        (main, ["--stages", "saes", "--shard", "a/b"], "--shard: found 'a/b'; allowed is i/n"),
        (inference_main, ["--shard", "1/3", "--merge"], "--merge: found with --shard"),
        (inference_main, ["--force", "--merge"], "--merge: found with --force"),
        (inference_main, ["--force", "--shard", "1/2"], "--shard: found with --force, which would remove"),
        (main, ["--shard", "1/2"], "--shard: found stages inference, saes, circuits, compare, report; what is shared"),
        (main, ["--train-saes", "--shard", "1/2"], "--shard: found stages inference, saes; what is shared out here is"),
        (
            main,
            ["--stages", "inference", "--shard", "1/2"],
            "parts of inference are made by: python src/run_inference.py --config FILE --shard i/n",
        ),
        (main, ["--stages", "saes", "--shard", "1/2", "--set", "train_saes=false"], "--shard: found train_saes: false"),
        (main, ["--stages", "saes", "--shard", "1/2"], "saes of planted/partial needs inference of planted/partial"),
    ],
)
def test_wrong_flags_are_told_before_anything_runs(config, tmp_path, monkeypatch, capsys, run, flags, said):
    def never(*arguments, **rest):
        raise AssertionError

    monkeypatch.setattr("refusal.models.ChatModel.load", never)
    assert run([*config, "--result-dir", str(tmp_path / "r"), *flags]) == 2
    assert said in capsys.readouterr().err
