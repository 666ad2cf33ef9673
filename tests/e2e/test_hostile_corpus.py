"""No input of a corpus of hostile ones gives a traceback, a hang, or a file outside the result folder.

More of it: python -m pytest tests/e2e/test_hostile_corpus.py --hostile-seeds 50
"""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import hostile_corpus
import huggingface_hub.constants
import pytest
from foreign_saes import write_each
from tiny_models import make_judge

import run_analysis
from circuits.job import inference_main, main
from refusal import behaviour_plots
from refusal.artefacts import ResultPaths
from refusal.config import Config, plain

MODEL = "planted/monolithic"
SECONDS = 30
"""What no input may take."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def seeds(request):
    return range(request.config.getoption("--hostile-seeds"))


@pytest.fixture
def yard(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command in a folder with nothing but `results`, and says what is wrong with it."""
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)

    def ring(number, frame):
        raise AssertionError(f"it takes more than {SECONDS} s")

    def outside():
        return {path for path in tmp_path.rglob("*") if path.relative_to(tmp_path).parts[0] not in ("results", "in")}

    statuses: Counter[object] = Counter()

    def run(command: Callable[[list[str]], int], words: list[str]) -> str | None:
        previous = signal.signal(signal.SIGALRM, ring)
        signal.alarm(SECONDS)
        capsys.readouterr()
        try:
            status = command(words)
        except SystemExit as stop:  # of argparse
            status = stop.code
        except BaseException as error:  # noqa: BLE001 - a traceback is what is looked for
            return f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        statuses[status] += 1
        said = capsys.readouterr().err
        if status not in (0, 2) or "Traceback" in said:
            return f"status {status}: {said[-300:]}"
        if status == 2 and said.count("error: ") < 1:
            return f"no message: {said[-300:]}"
        if any(ord(letter) < 32 and letter != "\n" for letter in said):
            return f"control characters: {said!r}"
        return f"files outside: {outside()}" if outside() else None

    return SimpleNamespace(root=tmp_path, run=run, statuses=statuses)


def survive(yard, cases: Iterable[tuple[str, str | None]], least: int, *, done: int = 1, refused: int = 1) -> None:
    """Hold that no case went wrong, and that there were enough of them, some of which are refused and some not."""
    cases = list(cases)
    found = [f"{name}: {wrong}" for name, wrong in cases if wrong is not None]
    assert not found, "\n".join(found)
    assert len(cases) >= least
    assert yard.statuses[0] >= done, yard.statuses
    assert yard.statuses[2] >= refused, yard.statuses


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

    survive(yard, cases(), 220)


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

    survive(yard, cases(), 85)


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

    survive(yard, cases(), 100)


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

    survive(yard, cases(), 180, done=0)  # they are read whole, and then are of another width


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

    survive(yard, cases(), 70)


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

    survive(yard, cases(), 13, refused=0)
