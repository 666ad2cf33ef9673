"""What a user installs and types: pins within the metadata, a wheel with every file, commands that answer --help."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = {"requirements.txt": PROJECT["dependencies"], "requirements-dev.txt": PROJECT["optional-dependencies"]["dev"]}
"""File of pins -> what the metadata asks for."""
NOT_SHIPPED = {"refusal/ruff.toml"}
"""Files in the packages' folders that only developers need."""
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"

SCRIPTS = sorted([*ROOT.glob("*.py"), *ROOT.glob("src/*.py"), *ROOT.glob("jobs/*.py")])
MODULES = [".".join(path.parent.relative_to(ROOT / "src").parts) for path in sorted(ROOT.glob("src/**/__main__.py"))]
COMMANDS = {path.name: [str(path)] for path in SCRIPTS} | {name: ["-m", name] for name in MODULES}
BENCHMARKS = sorted(path for path in ROOT.glob("benchmarks/**/*.py") if '__name__ == "__main__"' in path.read_text())


def lines(name):
    """Return what stands in a requirements file, without comments."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()) if line]


def shipped(folder):
    """Return the files below a folder, without what tools leave there."""
    names = (path.relative_to(folder.parent) for path in folder.rglob("*") if path.is_file())
    return {name.as_posix() for name in names if not any(part.startswith((".", "__pycache__")) for part in name.parts)}


def by_name(requirements):
    """Return requirements by the name that an index knows them under; none stands twice."""
    found = {canonicalize_name(Requirement(each).name): Requirement(each) for each in requirements}
    assert len(found) == len(requirements)
    return found


# Requirements --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_each_dependency_is_pinned_once_to_a_version_that_the_metadata_allows(name):
    pins = by_name([line for line in lines(name) if not line.startswith("-")])
    asked = by_name(FILES[name])
    assert pins.keys() == asked.keys()
    for package, pin in pins.items():
        (only,) = pin.specifier
        assert only.operator == "=="
        assert asked[package].specifier.contains(only.version), f"{package}: {only} is not in {asked[package]}"


def test_files_of_pins_install_the_package_itself_and_build_on_each_other():
    assert [line for line in lines("requirements.txt") if line.startswith("-")] == ["-e ."]
    assert [line for line in lines("requirements-dev.txt") if line.startswith("-")] == ["-r requirements.txt"]
    conda = lines("llm_refusal_env.yml")
    assert "- -r requirements.txt" in conda
    (python,) = (line.removeprefix("- python=") for line in conda if line.startswith("- python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


# Wheel ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the names in the wheel, built from a copy: setuptools leaves folders where it builds, and needs no net."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]):
        shutil.copy(ROOT / name, source)
    for name in ("src", "circuits"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    assert wheel == (shipped(ROOT / "src" / "refusal") | shipped(ROOT / "circuits")) - NOT_SHIPPED


@pytest.mark.parametrize(
    "name",
    [
        "refusal/planted/models/partial/model.safetensors",
        "refusal/planted/models/partial/chat_template.jinja",
        "refusal/planted/models/partial/planted.json",
        "refusal/planted/data/or-bench-hard-1k.csv",
        "circuits/templates/report.html.j2",
    ],
)
def test_the_wheel_holds_what_a_first_run_needs(wheel, name):
    assert name in wheel


# Commands ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_answers_help_from_any_folder(tmp_path, name):
    command = [sys.executable, *COMMANDS[name], "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_benchmark_answers_help(monkeypatch, capsys, path):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


# Hooks ---------------------------------------------------------------------------------------------------------------


def test_hooks_before_a_commit_run_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [each["repo"] for each in hooks] == ["local"]
    shown = subprocess.run(["make", "--dry-run", "lint"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = [line for line in shown.splitlines() if re.match(r"\S+/(ruff|mypy)\b", line)]
    assert [hook["entry"] for hook in hooks[0]["hooks"]] == commands
