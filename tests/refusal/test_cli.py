"""Flags, exit statuses and what is said with each."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import signal

import pytest

from refusal.cli import as_table, build_parser, read_config, run_command, stages_named
from refusal.config import Stage
from refusal.errors import ArtefactError, InputError, RefusalError


def raising(error):
    def command():
        raise error

    return command


def test_a_command_that_ends_prints_its_last_line_and_gives_zero(capsys):
    assert run_command(lambda: "written to results", verbose=False) == 0
    assert capsys.readouterr().out == "written to results\n"


@pytest.mark.parametrize("kind", [InputError, ArtefactError, RefusalError])
def test_what_the_user_can_mend_is_one_message_and_status_two(capsys, kind):
    assert run_command(raising(kind("x.yaml:3: seed: found 'a'")), verbose=False) == 2
    assert capsys.readouterr().err == "error: x.yaml:3: seed: found 'a'\n"


def test_with_verbose_the_traceback_is_logged_too(capsys):
    assert run_command(raising(InputError("wrong")), verbose=True) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("error: wrong\n")


def test_a_full_disk_is_the_users_to_mend(capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "results/a.json")
    assert run_command(raising(full), verbose=False) == 2
    assert capsys.readouterr().err == (
        "error: [Errno 28] No space left on device: 'results/a.json'; what was complete is kept, the same command "
        "resumes when it is mended\n"
    )


@pytest.mark.parametrize("error", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "gone"), AssertionError()])
def test_our_own_mistakes_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_command(raising(error), verbose=False)


def test_an_interruption_gives_130_and_says_how_to_go_on(capsys):
    assert run_command(raising(KeyboardInterrupt()), verbose=False) == 130
    assert capsys.readouterr().err == "interrupted; what was complete is kept, the same command resumes\n"


def test_a_schedulers_sigterm_is_an_interruption_and_the_handler_is_put_back(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def command():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
        return "never"

    assert run_command(command, verbose=False) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_messages_have_the_time_and_libraries_say_only_warnings(capsys):
    def command():
        logging.getLogger("refusal.stages").info("inference: up to date")
        logging.getLogger("refusal.stages").debug("detail")
        logging.getLogger("urllib3").info("chatter")
        logging.getLogger("urllib3").warning("slow")
        return "done"

    run_command(command, verbose=False)
    run_command(command, verbose=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line[9:] for line in lines] == [
        "inference: up to date",
        "slow",
        "inference: up to date",
        "detail",
        "slow",
    ]
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d .*", line) for line in lines)


# Flags ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("main_job", [True, False])
@pytest.mark.parametrize(
    "flags", [["--config", "x", "--nonsense"], ["--config", "x", "--result", "y"], [], ["--config"]]
)
def test_unknown_shortened_and_missing_flags_are_refused_by_argparse(capsys, main_job, flags):
    with pytest.raises(SystemExit) as end:
        build_parser("about", main_job=main_job).parse_args(flags)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_only_the_main_job_has_stages():
    with pytest.raises(SystemExit):
        build_parser("about", main_job=False).parse_args(["--config", "x", "--train-saes"])


def read(tmp_path, *flags) -> object:
    path = tmp_path / "x.yaml"
    path.write_text("seed: 1\n")
    arguments = build_parser("about", main_job=True).parse_args(["--config", str(path), *flags])
    assert isinstance(arguments, argparse.Namespace)
    return read_config(arguments)


@pytest.mark.parametrize("folder", ["runs/a", "123", "no", "null", "[x]", "a: b", "{x}", "# x", "späße und mehr"])
def test_any_name_can_be_a_result_dir(tmp_path, folder):
    assert str(read(tmp_path, "--result-dir", folder).result_dir) == folder


def test_the_last_override_counts(tmp_path):
    config = read(tmp_path, "--set", "seed=2", "--set", "seed=3", "--set", "result_dir=a", "--result-dir", "b")
    assert (config.seed, str(config.result_dir)) == (3, "b")


def test_stages_are_read_once_each_and_in_the_order_given():
    assert stages_named("report, saes,report", "--stages") == (Stage.REPORT, Stage.SAES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sae", r"--stages: found 'sae'; allowed are inference, saes, .*; did you mean saes\?"),
        ("", r"--stages: found ''; allowed are"),
        ("saes,,report", r"--stages: found ''"),
        ("SAES", r"--stages: found 'SAES'; allowed are"),
    ],
)
def test_what_is_no_stage_is_told_with_the_nearest(text, expected):
    with pytest.raises(InputError, match=expected):
        stages_named(text, "--stages")


def test_columns_of_a_table_are_aligned():
    assert as_table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"
