"""No input of a corpus of hostile ones gives a traceback, a hang, or a file outside the result folder.

More of it: python -m pytest tests/e2e/test_hostile_corpus.py --hostile-seeds 50
"""

from __future__ import annotations

import csv
import json
import shutil

import hostile_corpus
import pytest
from foreign_saes import write_each
from tiny_models import make_judge

import run_analysis
from circuits.job import inference_main, main
from refusal.artefacts import ResultPaths
from refusal.config import Config, plain
from refusal.evaluation import plots as behaviour_plots

MODEL = "planted/monolithic"

pytestmark = pytest.mark.usefixtures("offline")


SMALL = {
    "models": [MODEL],
    "num_samples_per_category": 12,
    "categories": ["violence"],
    "max_new_tokens": 2,
    "activation_layers": ["residuals_1"],
    "sae": {"seeds": [0], "steps": 20, "d_sae": 16, "k": 2, "stability_halves": False},
    "analysis": {"bootstrap": 100, "permutations": 0},
    "result_dir": "results",
}


def test_configurations(yard, seeds):
    base = plain(Config(**{**SMALL, "models": [MODEL]}))
    file = yard.root / "in" / "c.yaml"

    def cases():
        for seed in seeds:
            for name, content in hostile_corpus.configurations(base, seed, 150):
                file.write_bytes(content)
                yield f"{seed} {name}", yard.run(main, ["--config", str(file), "--dry-run"])
        file.write_text(json.dumps(SMALL))
        for words in (*hostile_corpus.FLAGS, *(["--set", each] for each in hostile_corpus.OVERRIDES)):
            yield str(words), yard.run(main, ["--config", str(file), *words, "--dry-run"])
        for path in ("nothing.yaml", ".", "a\x00b", "x" * 300, "/dev/zero", "/dev/null", "c.yaml/x"):
            yield path, yard.run(main, ["--config", path, "--dry-run"])

    yard.survive(cases(), 220)


def test_tables_of_prompts(yard, seeds):
    folder = yard.root / "in" / "data"
    folder.mkdir()
    words = ["--config", str(yard.root / "in" / "c.yaml"), "--dry-run"]
    (yard.root / "in" / "c.yaml").write_text(json.dumps({**SMALL, "categories": "all", "dataset_dir": str(folder)}))
    file = folder / "or-bench-toxic.csv"

    def cases():
        for seed in seeds:
            for name, content in hostile_corpus.tables(seed, 60):
                file.write_bytes(content)
                yield f"{seed} {name}", yard.run(main, words)
        file.unlink()
        for make in (lambda: file.mkdir(), lambda: file.symlink_to(file), lambda: file.symlink_to("/dev/zero")):
            make()
            yield "no file", yard.run(main, words)
            file.unlink() if file.is_symlink() else file.rmdir()

    yard.survive(cases(), 85)


def test_folders_of_models(yard, seeds, llama_folder):
    data, folder = yard.root / "in" / "data", yard.root / "in" / "model"
    data.mkdir()
    for name in ("or-bench-80k.csv", "or-bench-toxic.csv"):
        with (data / name).open("w", newline="") as handle:
            csv.writer(handle).writerows([["prompt", "category"], [f"tell me a story {name}", "violence"]])
    settings = {**SMALL, "models": [str(folder)], "dataset_dir": str(data), "num_samples_per_category": 2}
    (yard.root / "in" / "c.yaml").write_text(json.dumps(settings))
    words = ["--config", str(yard.root / "in" / "c.yaml"), "--force"]
    kinds = {
        "config.json": hostile_corpus.json_files,
        "tokenizer.json": hostile_corpus.json_files,
        "tokenizer_config.json": hostile_corpus.json_files,
        "generation_config.json": hostile_corpus.json_files,
        "model.safetensors.index.json": hostile_corpus.json_files,
    }
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../../etc/passwd"}}

    def each(file, seed):
        if file == "model.safetensors":
            return hostile_corpus.weights((llama_folder / file).read_bytes(), file, seed, 10)
        content = index if "index" in file else json.loads((llama_folder / file).read_text())
        return kinds[file](content, file, seed, 3 if "index" in file else 8)

    def cases():
        for seed in seeds:
            for file in (*kinds, "model.safetensors"):
                for name, content in each(file, seed):
                    shutil.rmtree(folder, ignore_errors=True)
                    shutil.copytree(llama_folder, folder)
                    (folder / file).write_bytes(content)
                    if "index" in file:
                        (folder / "model.safetensors").unlink()
                    yield f"{seed} {file} {name}", yard.run(inference_main, words)

    yard.survive(cases(), 100)


@pytest.fixture(scope="module")
def inferred(tmp_path_factory):
    """Return the result folder of a small inference."""
    root = tmp_path_factory.mktemp("inferred")
    (root / "c.yaml").write_text(json.dumps({**SMALL, "result_dir": str(root / "results")}))
    assert inference_main(["--config", str(root / "c.yaml")]) == 0
    return root / "results"


def test_files_of_saes(yard, seeds, inferred, monkeypatch):
    monkeypatch.setattr("refusal.sae.training.assess", lambda *_: None)  # SAEs that are whole need no proof here
    shutil.copytree(inferred, yard.root / "results")
    good = write_each(yard.root / "in" / "good")
    folder = yard.root / "in" / "sae"
    settings = {**SMALL, "sae": {"pretrained": str(folder)}}
    (yard.root / "in" / "c.yaml").write_text(json.dumps(settings))
    words = ["--config", str(yard.root / "in" / "c.yaml"), "--stages", "saes", "--force", "saes"]

    def cases():
        for seed in seeds:
            for kind, whole in good.items():
                for file in sorted(path for path in whole.iterdir() if path.is_file()):
                    content = file.read_bytes()
                    if file.suffix == ".json":
                        found = hostile_corpus.json_files(json.loads(content), f"{kind} {file.name}", seed, 7)
                    else:
                        found = hostile_corpus.weights(content, f"{kind} {file.name}", seed, 7)
                    for name, changed in found:
                        shutil.rmtree(folder, ignore_errors=True)
                        shutil.copytree(whole, folder)
                        (folder / file.name).write_bytes(changed)
                        yield f"{seed} {kind} {file.name} {name}", yard.run(main, words)

    yard.survive(cases(), 180, done=0)  # they are read whole, and then are of another width


def test_labels_by_people(yard, seeds, inferred, monkeypatch):
    monkeypatch.setattr(behaviour_plots, "save", lambda *_: None)
    shutil.copytree(inferred, yard.root / "results")
    ids = [each["id"] for each in json.loads(ResultPaths(inferred).model_outputs(MODEL).read_text())["outputs"]]

    def cases():
        for seed in seeds:
            for name, suffix, content in hostile_corpus.label_files(ids, seed, 15):
                file = yard.root / "in" / f"labels{suffix}"
                file.write_bytes(content)
                yield (
                    f"{seed} {suffix} {name}",
                    yard.run(run_analysis.main, ["--results-dir", "results", "--labels", str(file)]),
                )

    yard.survive(cases(), 70)


def test_verdicts_of_a_judge(yard, seeds, inferred):
    shutil.copytree(inferred, yard.root / "results")
    judge = make_judge(yard.root / "in" / "judge")
    paths = ResultPaths(yard.root / "results")
    labels = {"detector": "judge", "judge": str(judge)}
    (yard.root / "in" / "c.yaml").write_text(json.dumps({**SMALL, "labels": labels}))
    words = ["--config", str(yard.root / "in" / "c.yaml")]
    kept = paths.judgements(MODEL)
    assert inference_main(words) == 0
    lines = [line for line in kept.read_text().splitlines() if line]
    assert len(lines) > 5
    undisturbed = paths.refusal_labels(MODEL).read_bytes()

    def cases():
        for seed in seeds:
            for name, content in hostile_corpus.verdict_files(lines, seed, 6):
                kept.write_bytes(content)
                paths.stage_record("inference", MODEL).unlink(missing_ok=True)
                wrong = yard.run(inference_main, words)
                is_same = paths.refusal_labels(MODEL).read_bytes() == undisturbed
                yield f"{seed} {name}", wrong or (None if is_same else "a damaged verdict was believed")

    yard.survive(cases(), 13, refused=0)
