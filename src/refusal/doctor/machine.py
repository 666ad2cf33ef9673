"""What the machine and the environment offer: Python, packages, torch and its devices, memory, disk, schedulers."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from refusal.doctor.findings import Finding, ok, problem, warning

LEAST_PYTHON = (3, 11)
PACKAGE = "refusal-circuits"
GIB = 1 << 30
LEAST_MEMORY = 4 * GIB
"""Bytes below which even small models may not fit; a 7B model in bfloat16 takes 14 GiB on the device."""
LEAST_DISK = {"results": 5 * GIB, "models": 30 * GIB, "temporary files": GIB}
"""Bytes by what lies there: two models of 7B take 28 GiB."""
INSTALL = f"{sys.executable} -m pip install -r requirements.txt"
SCHEDULERS = {"slurm": "sbatch", "pbs": "qsub"}
PATIENCE = 10
"""Seconds that another program may take to tell its version."""


def check_python() -> Iterator[Finding]:
    """Look at Python's version and at whether it is an environment of its own."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        yield problem(
            "python", f"{version} is older than {least}", f"make the environment with Python {least} or newer"
        )
        return
    is_own = sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ
    if is_own:
        yield ok("python", f"{version} in {sys.prefix}")
    else:
        fix = "make one: python3 -m venv .venv, or bash jobs/setup.sh on a cluster"
        yield warning("python", f"{version} in {sys.prefix}, which is no environment of its own", fix)


def check_packages() -> Iterator[Finding]:
    """Compare the packages that are installed with what the project asks for."""
    try:
        asked = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield problem("packages", f"{PACKAGE} itself is not installed", f"in its folder run: {INSTALL}")
        return
    from packaging.requirements import Requirement

    wrong = []
    needed = [each for each in map(Requirement, asked) if each.marker is None or each.marker.evaluate({"extra": ""})]
    for each in needed:
        try:
            found = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{each.name} is missing")
            continue
        if not each.specifier.contains(found, prereleases=True):
            wrong.append(f"{each.name} is {found}, needed is {each.specifier}")
    if wrong:
        yield problem("packages", ", ".join(wrong), f"run: {INSTALL}")
    else:
        yield ok("packages", f"all {len(needed)} that are needed, {PACKAGE} {importlib.metadata.version(PACKAGE)}")


def has_nvidia_driver() -> bool:
    """Return whether this machine has an NVIDIA driver, whatever torch can do with it."""
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidiactl").exists()


def check_torch(wants_cuda: bool) -> Iterator[Finding]:
    """Look at torch and at the devices it can use.

    Args:
        wants_cuda: Whether the configuration insists on CUDA.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch

            has_cuda = torch.cuda.is_available()
    except (ImportError, OSError) as error:
        yield problem("torch", f"cannot be imported ({error})", f"run: {INSTALL}")
        return
    if has_cuda:
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            size = f"{properties.total_memory / GIB:.0f} GiB"
            yield ok("torch", f"{torch.__version__}, CUDA {torch.version.cuda}, {properties.name} with {size}")
        return
    say = problem if wants_cuda else warning
    if torch.backends.mps.is_available() and not wants_cuda:
        yield ok("torch", f"{torch.__version__}, Apple MPS")
    elif not has_nvidia_driver():
        if wants_cuda:
            yield problem("torch", "device is cuda, and no GPU is here", "ask on a GPU node, or set device: auto")
        else:
            yield ok("torch", f"{torch.__version__}, CPU only: no GPU here (a login node has none; ask on a GPU node)")
    elif torch.version.cuda is None:
        fix = "install a CUDA build: the selector of pytorch.org names the command"
        yield say("torch", f"{torch.__version__} is a CPU build, though there is an NVIDIA driver", fix)
    else:
        fix = "load a newer driver, take a torch for an older CUDA, or see whether CUDA_VISIBLE_DEVICES hides the GPU"
        yield say("torch", f"{torch.__version__} for CUDA {torch.version.cuda} cannot use the NVIDIA driver", fix)


def memory_bytes() -> int:
    """Return the memory that this process may use: what is available, or what a control group leaves it."""
    pages = int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    found = [pages]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:  # not Linux
        pass
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(name)
        text = limit.read_text(encoding="ascii").strip() if limit.is_file() else ""
        found += [int(text)] if text.isdecimal() else []
    return min(found)


def check_memory(needed: int = 0) -> Iterator[Finding]:
    """Compare the memory with what is needed.

    Args:
        needed: Bytes that the configuration takes, 0 for none in particular.
    """
    available = memory_bytes()
    shown = f"{available / GIB:.1f} GiB available"
    if available < needed:
        fix = "ask the scheduler for more, or use a smaller batch_size, fewer seeds or a smaller sae.d_sae"
        yield warning("memory", f"{shown}, {needed / GIB:.1f} GiB needed where models run on the CPU", fix)
    elif available < LEAST_MEMORY:
        yield warning("memory", shown, f"ask for at least {LEAST_MEMORY // GIB} GiB, or close other programs")
    else:
        yield ok("memory", shown)


def check_disk(what: str, folder: Path, needed: int = 0) -> Iterator[Finding]:
    """Look at whether a folder can be written, and at the room that it has.

    Args:
        what: What lies there, one of `LEAST_DISK`.
        folder: The folder; it may not exist yet.
        needed: Bytes that the configuration takes there.
    """
    there = folder.expanduser().absolute()
    while not there.exists():
        there = there.parent
    least = LEAST_DISK[what]
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield problem("disk", f"{folder} ({what}) cannot be written", "choose another folder, best in scratch")
        return
    free = shutil.disk_usage(there).free
    shown = f"{free / GIB:.1f} GiB free for {what} in {folder}"
    if free < needed:
        yield problem("disk", f"{shown}, {needed / GIB:.1f} GiB needed", "free some, or choose a folder in scratch")
    elif free < least:
        yield warning("disk", f"{shown}, {least / GIB:.0f} GiB are advised", "free some, or choose a folder in scratch")
    else:
        yield ok("disk", shown)


def check_temporary() -> Iterator[Finding]:
    """Look at the folder of temporary files."""
    yield from check_disk("temporary files", Path(tempfile.gettempdir()))


def check_scheduler() -> Iterator[Finding]:
    """Look for the schedulers that `jobs/submit.py` knows."""
    found = {name: path for name, program in SCHEDULERS.items() if (path := shutil.which(program)) is not None}
    if not found:
        yield ok("scheduler", "none here: python jobs/submit.py --scheduler local runs the same jobs on this machine")
    for name, path in found.items():
        yield ok("scheduler", f"{name}: {path}{_version(path)}; python jobs/submit.py --scheduler {name}")
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID")
    if job:
        yield ok("scheduler", f"this is inside job {job}")


def _version(program: str) -> str:
    """Return what a scheduler's program says of its version, in brackets; empty if it does not."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = (done.stdout or done.stderr).strip().splitlines()
    return f" ({lines[0].strip()})" if done.returncode == 0 and lines else ""
