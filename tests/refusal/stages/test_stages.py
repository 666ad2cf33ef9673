"""Units run once, say why they run again, survive kills and failures, and leave records that add up."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal.artefacts import ResultPaths, atomic_write, this_host, write_sealed
from refusal.config import Config, Stage
from refusal.errors import ArtefactError, InputError
from refusal.processes import Part
from refusal.stages import Pipeline, Unit, collected_warnings, pipeline, run_lock, signatures
from refusal.stages.run_lock import result_folder
from refusal.stages.signatures import file_digest


class Job:
    """Two models, three stages and a report; each unit writes what it read."""

    def __init__(self, root: Path, config: Config | None = None, forced=frozenset(), models=("a", "b")):
        self.ran: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.paths = ResultPaths(root)
        self.config = config or Config(models=models)
        self.source = root.parent / "prompts.csv"
        if not self.source.exists():
            self.source.write_text("prompt,category\n")
        units = []
        for model in models:
            inference = self.unit(Stage.INFERENCE, model, ("num_samples_per_category", "sae"), ())
            saes = self.unit(Stage.SAES, model, ("sae",), (inference,))
            units += [inference, saes, self.unit(Stage.COMPARE, model, ("analysis",), (inference, saes))]
        compared = tuple(unit for unit in units if unit.stage is Stage.COMPARE)
        units.append(self.unit(Stage.REPORT, None, ("report",), compared))
        self.pipeline = Pipeline(self.config, self.paths, units, forced)

    def unit(self, stage, model, keys, needs):
        output = self.paths.root / f"{stage}_{model}.txt"
        inputs = (self.source,) if stage is Stage.INFERENCE else ()

        def run():
            self.ran.append(f"{stage} {model}")
            if f"{stage} {model}" in self.fails:
                raise self.fails[f"{stage} {model}"]
            output.parent.mkdir(parents=True, exist_ok=True)
            read = [path.read_text() for need in needs for path in need.outputs()]
            output.write_text(f"{stage} {self.config.num_samples_per_category} {self.config.sae.k} {read}")

        return Unit(stage, model, keys, inputs, needs, lambda: [output], run)

    def run(self, *asked):
        self.pipeline.run(asked or (Stage.INFERENCE, Stage.SAES, Stage.COMPARE, Stage.REPORT))
        return self.ran

    def why(self, stage, model="a"):
        unit = next(unit for unit in self.pipeline.units if (unit.stage, unit.model) == (stage, model))
        return self.pipeline.state(unit).reason

    def record(self, stage, model="a"):
        return json.loads(self.paths.stage_record(stage, model).read_text())


ALL = [f"{stage} {model}" for model in "ab" for stage in ("inference", "saes", "compare")] + ["report None"]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "results"


def test_units_run_in_order_and_only_once(root):
    assert Job(root).run() == ALL
    assert Job(root).run() == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_samples_per_category": 50}, "num_samples_per_category changed 100 -> 50"),
        ({"sae": {"k": 3, "lr": 0.1}}, "sae changed: k auto -> 3, lr auto -> 0.1"),
    ],
)
def test_a_changed_key_is_named_with_both_values_and_only_what_depends_on_it_runs(root, config, expected):
    Job(root).run()
    job = Job(root, Config(models=("a", "b"), **config))
    assert job.why(Stage.INFERENCE) == expected
    assert job.why(Stage.SAES) == "inference of a is not up to date"
    assert job.run() == ALL


def test_a_key_that_nothing_depends_on_runs_nothing(root):
    Job(root).run()
    assert Job(root, Config(models=("a", "b"), device="cpu", batch_size=3)).run() == []
    job = Job(root, Config(models=("a", "b"), analysis={"bootstrap": 500}))
    assert job.why(Stage.COMPARE) == "analysis changed: bootstrap 2000 -> 500"
    assert job.run() == ["compare a", "compare b"]  # the report reads what compare wrote, and that is the same


def test_a_changed_input_file_is_named(root):
    job = Job(root)
    job.run()
    job.source.write_text("prompt,category\nx,y\n")
    assert Job(root).why(Stage.INFERENCE) == "prompts.csv changed"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda file: file.unlink(), "saes_a.txt is missing or changed"),
        (lambda file: file.write_text("x"), "saes_a.txt is missing or changed"),
        (lambda file: file.write_text(file.read_text().replace("saes", "SAES")), "saes_a.txt is missing or changed"),
    ],
)
def test_a_missing_or_changed_output_is_made_again(root, damage, expected):
    Job(root).run()
    damage(root / "saes_a.txt")
    job = Job(root)
    assert job.why(Stage.SAES) == expected
    assert job.why(Stage.COMPARE) == "saes of a is not up to date"
    assert job.run() == ["saes a"]  # it wrote what was there before, so what follows stays


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "refusal-circuits/stage/1"}', '{"schema": "other"}'])
def test_a_record_that_cannot_be_read_is_as_good_as_none(root, text):
    Job(root).run()
    Job(root).paths.stage_record(Stage.SAES, "a").write_text(text)
    job = Job(root)
    assert job.why(Stage.SAES) == "its record cannot be read"
    assert job.run() == ["saes a"]


def test_another_code_version_runs_again(root):
    Job(root).run()
    job = Job(root)
    path = job.paths.stage_record(Stage.SAES, "a")
    write_sealed(path, {**job.record(Stage.SAES), "version": 0})
    assert job.why(Stage.SAES) == "made by another version"


def test_forcing_a_stage_discards_it_and_redoes_what_follows(root):
    Job(root).run()
    job = Job(root, forced=frozenset({Stage.SAES}))
    assert job.why(Stage.INFERENCE) == "up to date"
    assert job.why(Stage.SAES) == job.why(Stage.REPORT, None) == "forced"
    seen = []
    job.pipeline.units[1].outputs()[0].with_name("saes_a.txt").write_text("old")
    original = job.pipeline.units[1].run
    object.__setattr__(job.pipeline.units[1], "run", lambda: (seen.append((root / "saes_a.txt").exists()), original()))
    assert job.run() == [name for name in ALL if not name.startswith("inference")]
    assert seen == [False]


def test_forcing_a_stage_that_is_not_asked_for_is_refused(root):
    with pytest.raises(InputError, match=r"--force saes: this run has the stages compare, report only; name saes"):
        Job(root, forced=frozenset({Stage.SAES})).run(Stage.COMPARE, Stage.REPORT)


def test_a_stage_that_needs_one_that_was_not_run_says_what_to_run(root):
    job = Job(root, models=("a",), config=Config(models=("a",)))
    with pytest.raises(ArtefactError) as error:
        job.run(Stage.COMPARE)
    expected = "compare of a needs inference of a, which is not ready (not done yet); first run: python src/run_inf"
    assert str(error.value).startswith(f"{root}: {expected}")
    job.run(Stage.INFERENCE)
    with pytest.raises(ArtefactError, match=r"needs saes of a.*--train-saes"):
        job.run(Stage.COMPARE)
    assert job.ran == ["inference a"]


def test_a_stale_stage_before_is_no_basis(root):
    Job(root, models=("a",), config=Config(models=("a",))).run()
    job = Job(root, models=("a",), config=Config(models=("a",), num_samples_per_category=50))
    with pytest.raises(ArtefactError, match=r"not ready \(num_samples_per_category changed 100 -> 50\)"):
        job.run(Stage.SAES)


def test_a_model_that_fails_does_not_keep_the_others_from_running(root):
    job = Job(root)
    job.fails["saes a"] = InputError("sae.k: too many")
    with pytest.raises(InputError) as error:
        job.run()
    first, last = str(error.value).splitlines()
    assert first == "sae.k: too many"
    assert last.startswith(f"{root}: 1 of 2 models failed; what is done is kept")
    assert job.ran == ["inference a", "saes a", "inference b", "saes b", "compare b"]
    assert Job(root).run() == ["saes a", "compare a", "report None"]


def test_two_models_that_fail_are_both_told(root):
    job = Job(root)
    job.fails = {"saes a": InputError("first"), "inference b": InputError("second")}
    with pytest.raises(InputError, match=r"(?s)first\nsecond\n.*2 of 2 models failed"):
        job.run()


def test_our_own_mistake_is_not_taken_for_the_users(root):
    job = Job(root)
    job.fails["inference a"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        job.run()
    assert not job.paths.stage_record(Stage.INFERENCE, "a").exists()


def test_an_output_that_was_not_written_is_our_mistake(root):
    job = Job(root)
    object.__setattr__(job.pipeline.units[0], "run", lambda: None)
    with pytest.raises(RuntimeError, match=r"inference_a.txt should have been written"):
        job.run()


def test_a_unit_that_dies_runs_again_even_if_it_had_been_done(root):
    Job(root).run()
    job = Job(root, Config(models=("a", "b"), num_samples_per_category=50))
    job.fails["inference a"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        job.run()
    assert Job(root).why(Stage.INFERENCE) == "not done yet"


def test_a_record_says_time_memory_warnings_and_checksums(root):
    job = Job(root)
    original = job.pipeline.units[0].run

    def warn():
        logging.getLogger("refusal.models").warning("%s has no chat template", "a")
        logging.getLogger("refusal.models").warning("%s has no chat template", "a")
        original()

    object.__setattr__(job.pipeline.units[0], "run", warn)
    job.run()
    record = job.record(Stage.INFERENCE)
    assert record["warnings"] == ["a has no chat template"]
    assert record["seconds"] >= 0
    assert record["peak_memory_bytes"] > 1 << 20
    assert record["outputs"]["inference_a.txt"]["sha256"] == file_digest(root / "inference_a.txt")
    assert record["fingerprint"]["inputs"] == {"prompts.csv": file_digest(job.source)}
    assert job.record(Stage.SAES)["warnings"] == []


def test_the_manifest_holds_configuration_versions_seeds_and_every_stage(root):
    job = Job(root)
    job.run(Stage.INFERENCE)
    manifest = json.loads(job.paths.manifest.read_text())
    assert manifest["schema"] == "refusal-circuits/manifest/1"
    assert manifest["configuration"]["models"] == ["a", "b"]
    assert manifest["seeds"] == {"seed": 0, "sae": [0, 1, 2]}
    assert manifest["versions"]["torch"]
    assert [(stage["stage"], stage["model"]) for stage in manifest["stages"]] == [
        ("inference", "a"),
        ("inference", "b"),
    ]
    Job(root).run()
    assert len(json.loads(job.paths.manifest.read_text())["stages"]) == 7


def test_warnings_of_python_are_collected_too():
    with warnings.catch_warnings(), collected_warnings() as texts:
        warnings.simplefilter("always")
        warnings.warn("old function", UserWarning, stacklevel=1)
    assert len(texts) == 1
    assert "old function" in texts[0]


def test_results_that_were_copied_elsewhere_are_still_up_to_date(root, tmp_path):
    Job(root).run()
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copy)
    assert Job(tmp_path / "copy").run() == []


def test_input_files_may_move_and_two_of_one_name_are_kept_apart(root, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.csv").write_text(folder)
    one, two = tmp_path / "one" / "x.csv", tmp_path / "two" / "x.csv"
    assert set(signatures.digests([one])) == {"x.csv"}
    assert signatures.digests([one, two]) == {str(one): file_digest(one), str(two): file_digest(two)}


def test_a_large_output_is_believed_by_size_and_time_until_either_changes(root, monkeypatch):
    monkeypatch.setattr(signatures, "SMALL_FILE", 4)
    Job(root).run()
    output = root / "inference_a.txt"
    before = output.stat()
    monkeypatch.setattr(signatures, "file_digest", lambda path: "read")
    assert Job(root).why(Stage.INFERENCE).endswith("prompts.csv changed")
    monkeypatch.undo()
    monkeypatch.setattr(signatures, "SMALL_FILE", 4)
    os.utime(output, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert Job(root).why(Stage.INFERENCE) == "up to date"
    output.write_text(output.read_text()[::-1])
    assert Job(root).why(Stage.INFERENCE) == "inference_a.txt is missing or changed"


@given(content=st.binary(min_size=6, max_size=40), position=st.integers(0, 39), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_small_file_changes_its_digest(tmp_path_factory, content, position, bit):
    path = tmp_path_factory.mktemp("digest") / "file"
    path.write_bytes(content)
    before = file_digest(path)
    flipped = bytearray(content)
    flipped[position % len(content)] ^= 1 << bit
    other = path.with_name("other")
    other.write_bytes(bytes(flipped))
    assert file_digest(other) != before


def test_a_large_file_is_sampled_and_its_size_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "LARGE_FILE", 10)
    monkeypatch.setattr(signatures, "_SAMPLE", 2)
    digests = set()
    for name, content in {
        "a": b"0123456789ab",
        "b": b"X123456789ab",
        "c": b"012345X789ab",
        "d": b"0123456789aX",
    }.items():
        (tmp_path / name).write_bytes(content)
        digests.add(file_digest(tmp_path / name))
    (tmp_path / "e").write_bytes(b"0123456789ab" * 2)
    digests.add(file_digest(tmp_path / "e"))
    assert len(digests) == 5
    assert all(digest.startswith("sampled:") for digest in digests)


def test_a_missing_input_file_is_told(tmp_path):
    with pytest.raises(
        InputError, match=r"no.safetensors: cannot be read \(No such file or directory\); check the path"
    ):
        file_digest(tmp_path / "no.safetensors")


# The folder ----------------------------------------------------------------------------------------------------------


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_lock_lasts_as_long_as_the_run(root):
    with result_folder(root) as paths:
        assert (root / ".lock").read_text() == f"{socket.gethostname()} {os.getpid()}"
        assert paths.root == root
        with (
            pytest.raises(InputError, match=r"in use by another run .*; wait for it, .* or delete"),
            result_folder(root),
        ):
            pass
    assert list(root.iterdir()) == []


def test_a_lock_of_another_machine_is_respected(root):
    root.mkdir()
    (root / ".lock").write_text("elsewhere 1")
    with pytest.raises(InputError, match=r"in use by another run \(elsewhere 1\)"), result_folder(root):
        pass
    assert (root / ".lock").read_text() == "elsewhere 1"


@pytest.mark.parametrize("holder", [None, "", "half", f"{socket.gethostname()} 99999999999999999999"])
def test_a_lock_of_a_dead_run_is_taken_over(root, holder):
    root.mkdir()
    (root / ".lock").write_text(f"{socket.gethostname()} {dead_process()}" if holder is None else holder)
    with result_folder(root):
        assert str(os.getpid()) in (root / ".lock").read_text()


def test_of_runs_that_find_a_dead_lock_only_one_gets_it(root):
    root.mkdir()
    (root / ".lock").write_text(f"{socket.gethostname()} {dead_process()}")
    code = (
        "import sys; from pathlib import Path; from refusal.errors import InputError\n"
        "from refusal.stages.run_lock import result_folder\n"
        "try:\n"
        f"    with result_folder(Path({str(root)!r})): print('got it', flush=True); sys.stdin.read()\n"
        "except InputError: print('refused', flush=True)\n"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [run.stdout.readline().strip() for run in runs]  # the one that has it keeps it until its input ends
    for run in runs:
        run.communicate()
    assert sorted(answers) == ["got it", "refused", "refused", "refused"]


def test_what_a_killed_run_was_writing_is_removed_and_what_may_be_written_now_is_not(root):
    folder = root / "circuits"
    folder.mkdir(parents=True)
    living, dead, own = os.getppid(), dead_process(), os.getpid()
    stay = {f".{living}-{this_host()}.partial.a.json", f".{dead}-00000000.partial.a.json", ".mine.partial.json"}
    go = {f".{dead}-{this_host()}.partial.a.json", f".{own}-{this_host()}.partial.a.json", ".5-11111111.partial.b.json"}
    for name in (*stay, *go):
        (folder / name).write_text("{")
    os.utime(folder / ".5-11111111.partial.b.json", (0, 0))  # of another machine, long ago
    with result_folder(root, shard=Part(0, 2)):
        assert {path.name for path in folder.iterdir()} == stay | go, "a shard leaves other shards' files alone"
    with result_folder(root):
        assert {path.name for path in folder.iterdir()} == stay


def test_atomic_write_marks_its_partial_file_so_that_it_is_found(root):
    with atomic_write(root / "a.json") as beside:
        assert beside.name == f".{os.getpid()}-{this_host()}.partial.a.json"
        beside.write_text("{}")


def locked(root, shard=None):
    with result_folder(root, shard=shard):
        return True


def test_other_shards_of_the_same_run_work_at_once_and_nothing_else_does(root):
    with result_folder(root, shard=Part(0, 3)):
        with result_folder(root, shard=Part(2, 3)):
            assert locked(root, Part(1, 3))
        with pytest.raises(InputError, match=r"in use by shard 1/3 \(.*\); wait for it"):
            locked(root, Part(0, 3))
        with pytest.raises(InputError, match=r"in use by shard 1/3 .*, beside which a whole run cannot work; .*delete"):
            locked(root)
        with pytest.raises(InputError, match=r"in use by shard 1/3 .*, beside which shard 2/4 cannot work"):
            locked(root, Part(1, 4))
    assert list(root.iterdir()) == []


def test_beside_a_whole_run_no_shard_works(root):
    with (
        result_folder(root),
        pytest.raises(InputError, match=r"in use by another run .*, beside which shard 1/2 cannot work"),
    ):
        locked(root, Part(0, 2))
    assert list(root.iterdir()) == []


def test_locks_of_shards_that_are_gone_keep_nothing_from_running(root):
    root.mkdir()
    for number in (1, 2):
        (root / f".lock.shard-of-2-{number}").write_text(f"{socket.gethostname()} {dead_process()}")
    assert locked(root, Part(0, 2))
    assert locked(root)
    assert list(root.iterdir()) == []
    (root / ".lock.shard-of-2-1").write_text("elsewhere 1")
    with pytest.raises(InputError, match=r"in use by shard 1/2 \(elsewhere 1\), beside which a whole run"):
        locked(root)


def test_a_folder_that_cannot_be_written_is_told(root):
    root.write_text("a file")
    with pytest.raises(InputError, match=r"result_dir: .* cannot be written .*; nothing was lost"), result_folder(root):
        pass


def test_a_read_only_disk_is_told(root, monkeypatch):
    def refuse(lock):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(run_lock, "_take", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"), result_folder(root):
        pass


def test_a_full_disk_is_told_before_anything_runs(root, monkeypatch):
    monkeypatch.setattr(run_lock, "free_bytes", lambda path: 3 << 20)
    with pytest.raises(InputError, match=r"is on a disk with 3.0 MiB free; needed are 64.0 MiB"), result_folder(root):
        pass
    assert not (root / ".lock").exists()


def test_another_detector_or_another_version_of_it_makes_the_labels_anew(tmp_path, monkeypatch):
    Job(tmp_path / "r").run()
    assert Job(tmp_path / "r").why(Stage.INFERENCE) == "up to date"
    rules = Config(models=("a", "b"), labels={"detector": "rules"})
    assert Job(tmp_path / "r", rules).why(Stage.INFERENCE) == "labels changed"
    monkeypatch.setattr(pipeline, "VERSION", pipeline.VERSION + 1)
    assert Job(tmp_path / "r").why(Stage.INFERENCE) == "version of the labels changed"


def test_another_judge_behind_the_same_name_makes_the_labels_anew(tmp_path, llama_folder):
    judge = tmp_path / "judge"
    shutil.copytree(llama_folder, judge)
    config = Config(models=("a", "b"), labels={"detector": "judge", "judge": str(judge)})
    Job(tmp_path / "r", config).run()
    assert Job(tmp_path / "r", config).why(Stage.INFERENCE) == "up to date"
    (judge / "chat_template.jinja").write_text("other")
    assert Job(tmp_path / "r", config).why(Stage.INFERENCE) == "chat_template.jinja changed"


def test_a_forced_stage_redoes_what_needs_it_and_nothing_that_only_follows(root):
    """Directions need inference alone: forcing the SAEs, which come first, leaves them, and the other way round."""

    def job(*forced):
        made = Job(root, models=("a",), forced=frozenset(forced))
        inference, report = made.pipeline.units[0], made.pipeline.units[-1]
        directions = made.unit(Stage.DIRECTIONS, "a", (), (inference,))
        report = replace(report, needs=(*report.needs, directions))
        made.pipeline = Pipeline(
            made.config, made.paths, [*made.pipeline.units[:-1], directions, report], made.pipeline.forced
        )
        return made

    every = tuple(Stage)
    assert job().run(*every) == ["inference a", "saes a", "compare a", "directions a", "report None"]
    assert job(Stage.SAES).run(*every) == ["saes a", "compare a", "report None"]
    assert job(Stage.DIRECTIONS).run(*every) == ["directions a", "report None"]
    assert job(Stage.INFERENCE).why(Stage.DIRECTIONS) == "forced"
