"""Nothing that the directions and patching jobs read gives a traceback, a hang, or a file outside the result folder.

Each refusal names the file or the key. More of it: python -m pytest tests/e2e/test_hostile_directions.py
--hostile-seeds 50
"""

from __future__ import annotations

import json
import os
import random
import shutil

import hostile_directions as hostile
import pytest
import torch
from hostile_corpus import FLAGS, VALUES

from circuits.directions import inspection
from circuits.job import directions_main, patching_main
from refusal.config import Config, plain
from refusal.directions.formats import DIRECTION, EVALUATIONS, MEAN_DIFFS, METADATA

SMALL = {
    "models": ["planted/monolithic"],
    "num_samples_per_category": 8,
    "categories": ["violence"],
    "max_new_tokens": 2,
    "activation_layers": ["residuals_1"],
    "analysis": {"bootstrap": 100, "permutations": 20},
    "result_dir": "results",
}
MEANS = torch.arange(24.0, dtype=torch.float64).reshape(2, 4, 3) - 7

pytestmark = pytest.mark.usefixtures("offline")


def config(yard, **sections):
    """Return the words that plan a run with some sections, on a few prompts."""
    data = yard.root / "in" / "data"
    data.mkdir(exist_ok=True)
    for name in ("or-bench-80k.csv", "or-bench-toxic.csv"):
        rows = "".join(f"tell me a story {name} {number},violence\n" for number in range(8))
        (data / name).write_text(f"prompt,category\n{rows}")
    file = yard.root / "in" / "c.yaml"
    file.write_text(json.dumps({**SMALL, "dataset_dir": str(data), **sections}), "utf-8", errors="surrogatepass")
    return ["--config", str(file), "--dry-run"]


def no_files(folder):
    """Yield names of what looks like a file and is none, made one after the other."""
    whole = folder / "pipe.json"
    for make in (
        lambda: whole.mkdir(),
        lambda: whole.symlink_to(whole),
        lambda: whole.symlink_to("/dev/zero"),
        lambda: os.mkfifo(whole),
    ):
        make()
        yield whole
        whole.rmdir() if whole.is_dir() and not whole.is_symlink() else whole.unlink()


@pytest.mark.parametrize(("section", "command"), [("directions", directions_main), ("patching", patching_main)])
def test_keys_of_a_section(yard, seeds, section, command):
    defaults = plain(Config())[section]

    def cases():
        for seed in seeds:
            generator = random.Random(f"{section} {seed}")
            for key in defaults:
                for value in generator.sample(VALUES, 2):
                    found = yard.run(command, config(yard, **{section: {key: value}}), section, "contrast")
                    yield f"{key}: {str(value)[:60]!r}", found
            for words in FLAGS:
                flags = [*config(yard), *words]
                yield str(words), yard.run(command, flags, words[0], "arguments", "result_dir", "stage")

    yard.survive(cases(), 38, done=0)


@pytest.fixture
def published(yard):
    """Return a folder of published directions that is whole."""
    folder = yard.root / "in" / "published"
    folder.mkdir()
    (folder / MEAN_DIFFS).write_bytes(hostile.saved(MEANS))
    (folder / DIRECTION).write_bytes(hostile.saved(MEANS[-1, 1]))
    (folder / METADATA).write_text(json.dumps(hostile.METADATA))
    return folder


def spoilt(folder, seeds, escaped, wanted=(MEAN_DIFFS, DIRECTION, METADATA, EVALUATIONS)):
    """Yield (file, name) for every way to spoil a file of a published folder, which is put right afterwards."""
    for seed in seeds:
        files = {
            MEAN_DIFFS: hostile.tensor_files(MEANS, MEAN_DIFFS, escaped, seed, 12),
            DIRECTION: hostile.tensor_files(MEANS[-1, 1], DIRECTION, escaped, seed, 12),
            METADATA: hostile.metadata_files(seed, 8),
            EVALUATIONS: hostile.evaluation_files(4, seed, 8),
        }
        for file in wanted:
            contents = files[file]
            whole = (folder / file).read_bytes() if (folder / file).exists() else None
            for name, content in contents:
                (folder / file).write_bytes(content)
                yield file, f"{seed} {file} {name}"
            (folder / file).unlink()
            if whole is not None:
                (folder / file).write_bytes(whole)


def test_folders_to_inspect(yard, published, seeds, monkeypatch):
    monkeypatch.setattr(inspection, "save_figure", lambda *_: None)  # that figures are drawn is held below
    words = ["--inspect", str(published)]

    def cases():
        yield "whole", yard.run(directions_main, words)
        for file, name in spoilt(published, seeds, yard.root / "escaped"):
            yield name, yard.run(directions_main, words, file)
        for file in (MEAN_DIFFS, DIRECTION, METADATA):
            whole = (published / file).read_bytes()
            (published / file).unlink()
            yield f"no {file}", yard.run(directions_main, words, file)
            for odd in no_files(yard.root / "in"):
                (published / file).symlink_to(odd)
                yield f"{file} is {odd}", yard.run(directions_main, words, file)
                (published / file).unlink()
            (published / file).write_bytes(whole)

    yard.survive(cases(), 180, done=10)


def test_names_of_folders_to_inspect(yard, published):
    names = ("$x^$", "\u202e\u05e9", "con", "x" * 200, "%2E%2E", "__", "-", "=1")

    def cases():
        for name in names:
            shutil.copytree(published, yard.root / "in" / name)
            yield repr(name), yard.run(directions_main, ["--inspect", str(yard.root / "in" / name)])
        for path in (
            "nothing",
            "",
            "/",
            "a\x00b",
            "a\nb\x1b[2J",
            "x" * 300,
            "/dev/zero",
            "/dev/null/x",
            "~nobody/x",
            "\udcff",
        ):
            yield repr(path), yard.run(directions_main, ["--inspect", path], "--inspect", "give a folder", "not found")
        for flag in ("", "a\x00b", "x" * 300, "/dev/null/x", "~nobody/x"):
            words = ["--inspect", str(published), "--result-dir", flag]
            yield repr(flag), yard.run(directions_main, words, "--result-dir")
        for flags in (["--dry-run"], ["--force", "directions"], ["--stages", "directions"], ["--set", "seed=1"]):
            yield str(flags), yard.run(directions_main, ["--inspect", str(published), *flags], flags[0])

    yard.survive(cases(), 25, done=len(names))
    assert len(list((yard.root / "results" / "visualizations").iterdir())) == len(names)


def test_contrast_sets(yard, seeds):
    def cases():
        for seed in seeds:
            for name, suffix, content in hostile.contrast_files(seed, 10):
                file = yard.root / "in" / f"classes{suffix}"
                file.write_bytes(content)
                words = config(yard, directions={"contrasts": [str(file)]})
                yield f"{seed} {suffix} {name}", yard.run(directions_main, words, file.name)
        for odd in no_files(yard.root / "in"):
            words = config(yard, directions={"contrasts": [str(odd)], "text_file": str(odd)})
            yield f"{odd}", yard.run(directions_main, words, odd.name)

    yard.survive(cases(), 65, done=3)


def test_files_of_pairs(yard, seeds):
    def cases():
        for seed in seeds:
            for name, suffix, content in hostile.pair_files(seed, 12):
                file = yard.root / "in" / f"pairs{suffix}"
                file.write_bytes(content)
                words = config(yard, patching={"pairs": str(file)})
                yield f"{seed} {suffix} {name}", yard.run(patching_main, words, file.name)
        for odd in no_files(yard.root / "in"):
            yield f"{odd}", yard.run(patching_main, config(yard, patching={"pairs": str(odd)}), odd.name)

    yard.survive(cases(), 100, done=10)


def test_given_directions(yard, published, seeds):
    words = config(yard, patching={"direction": str(published)})

    def cases():
        yield "whole", yard.run(patching_main, words)
        for file, name in spoilt(published, seeds, yard.root / "escaped", (DIRECTION, METADATA)):
            yield name, yard.run(patching_main, words, file)

    yard.survive(cases(), 80, done=3)
