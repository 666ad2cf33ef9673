"""A resources file is checked whole, with line and nearest name; what a job gets follows a plain order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal.errors import InputError
from refusal.jobs.dialects import clock
from refusal.jobs.resources import JobName, Resources, load


def message(tmp_path, text: str) -> list[str]:
    """Return what is said of a file, without its path."""
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load(path)
    return str(error.value).replace(f"{path}:", "").splitlines()


def test_the_example_is_valid_and_says_the_defaults():
    example = load(Path(__file__).parents[3] / "jobs" / "resources.yaml")
    plain = Resources()
    assert example.model_dump(exclude={"jobs"}) | {"options": None} == plain.model_dump(exclude={"jobs"})
    for name in (JobName.MERGE, JobName.CIRCUITS, JobName.REPORT):
        assert example.of(name).model_dump(exclude={"options"}) == plain.of(name).model_dump(exclude={"options"})
    assert [example.of(name).shards for name in JobName] == [4, 1, 4, 1, 1]


def test_all_findings_are_told_with_line_and_nearest_name(tmp_path):
    text = "gpu: 1\nmemory: 64\nwalltime: 1:30\nqueue: a b\noptions: [x]\njobs:\n  inference: {shards: 0}\n  sae: {}\n"
    assert message(tmp_path, text) == [
        "1: gpu: unknown key; did you mean gpus?",
        "2: memory: found 64; allowed is a whole number with its unit, e.g. 64GB or 512MB",
        "3: walltime: found '1:30'; allowed is hours:minutes:seconds, e.g. 08:00:00 or 2-00:00:00 for two days",
        "4: queue: found 'a b'; allowed are letters, digits and _ . @ + : / = -",
        "5: options: found 'x'; allowed is an option as on the command line, beginning with -",
        "7: jobs.inference.shards: found 0; allowed is a whole number from 1 to 1000",
        "8: jobs.sae: unknown key; did you mean saes?",
    ]


@pytest.mark.parametrize("key", ["account", "queue", "partition", "gpu_type", "chunk"])
@pytest.mark.parametrize("value", ['"a\\nexit"', '"a;b"', '"$(x)"', '"a\'b"', '"a\\n"'])
def test_no_word_can_leave_its_directive(tmp_path, key, value):
    (said,) = message(tmp_path, f"{key}: {value}\n")
    assert said.startswith(f"1: {key}: found ")


@pytest.mark.parametrize("key", ["options", "prologue"])
def test_entries_are_one_line_each(tmp_path, key):
    (said,) = message(tmp_path, f'{key}: ["-a\\nexit"]\n')
    assert said.endswith("allowed is one line; write several as several entries")


def test_a_file_that_is_not_there_is_told_with_its_flag(tmp_path):
    with pytest.raises(InputError, match=r"--resources .*/none.yaml: no such file; give a YAML file, e.g. jobs/resour"):
        load(tmp_path / "none.yaml")


def test_grace_is_less_than_every_walltime(tmp_path):
    (said,) = message(tmp_path, 'walltime: "10:00:00"\ngrace: 3600\n')
    assert said.endswith(
        "grace: found 3600 s, which is the whole walltime of merge, report; allowed is less than the walltime; give "
        "more time, or less grace"
    )


def test_what_is_said_of_a_job_counts_before_its_kind_and_that_before_all():
    said = Resources.model_validate(
        {
            "gpus": 2,
            "memory": "1TB",
            "walltime": "1-00:00:00",
            "jobs": {"report": {"memory": "3GB"}, "saes": {"gpus": 0}},
        }
    )
    report, saes, merge = (said.of(name) for name in (JobName.REPORT, JobName.SAES, JobName.MERGE))
    assert (report.gpus, report.memory, report.walltime) == (0, 3 * 1024, 3600)
    assert (saes.gpus, saes.memory, saes.walltime) == (0, 1024 * 1024, 86400)
    assert (merge.gpus, merge.walltime) == (2, 3600)


@given(st.integers(1, 10**7))
def test_a_walltime_is_read_as_it_is_written(seconds):
    assert Resources(walltime=clock(seconds)).walltime == seconds
    days, rest = divmod(seconds, 86400)
    assert Resources(walltime=f"{days}-{clock(rest)}").walltime == seconds


@given(st.integers(1, 10**6), st.sampled_from(["M", "MB", "MiB", "mb", " MB"]))
def test_memory_is_read_in_any_spelling(number, unit):
    assert Resources(memory=f"{number}{unit}").memory == number
    assert Resources(memory=f"{number}GB").memory == 1024 * number


@given(st.text(max_size=12))
def test_no_text_is_taken_for_an_amount_that_it_is_not(text):
    for key in ("memory", "walltime"):
        try:
            said, amount = "", getattr(Resources.model_validate({key: text}), key)
        except ValueError as error:
            said, amount = str(error), 0
        assert amount > 0 or "allowed is" in said
