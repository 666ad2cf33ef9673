"""A real Slurm of one node, started by a test as root on free ports, with everything it writes in one folder.

The node has a pretend GPU (/dev/zero) that is really scheduled. There is no accounting, so states are read from the
controller, which remembers jobs for ten minutes. A job that is handed in again waits until its old credentials have
expired: five seconds here, two minutes by default.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from emulated_queue import Stop

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scancel", "scontrol", "squeue", "sinfo")
CONFIGURATION = """\
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
MpiDefault=none
ReturnToService=2
KillWait=2
MinJobAge=600
DebugFlags=NO_CONF_HASH
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=256
"""


def is_installed() -> bool:
    """Return whether this machine has what it takes, and lets us start it."""
    return os.geteuid() == 0 and all(shutil.which(program) for program in PROGRAMS)


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class MiniSlurm:
    """The cluster. Its folder must have a short path (a socket lies in it) that all may enter (munge insists)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.statuses: dict[str, int] = {}
        """Exit status of each job's last task, once it is finished."""
        self._past: set[str] = set()

    def start(self) -> None:
        """Start all three daemons and wait until the node is idle."""
        for name in ("munge", "state", "spool", "log"):
            (self.folder / name).mkdir(parents=True)
            (self.folder / name).chmod(0o700 if name == "log" else 0o755)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        host = socket.gethostname().split(".")[0]
        found = dict(re.findall(r"(CPUs|RealMemory)=(\d+)", self._output("slurmd", "-C")))
        text = CONFIGURATION.format(
            host=host, folder=self.folder, ports=_free_ports(2), cpus=found["CPUs"], memory=found["RealMemory"]
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/zero\n")
        self._output(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge/socket",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={self.folder}/munge/seed",
        )
        self._output("slurmctld", "-c")
        self._output("slurmd")
        self._wait_until(lambda: "idle" in self._output("sinfo", "--noheader", "--format=%T"))

    def stop(self) -> None:
        """End the daemons, by the ids that they left; what they would write on the way is thrown away anyhow."""
        self._run("scancel", "--quiet", "--user=root")
        for name in ("slurmd", "slurmctld", "munged"):
            path = self.folder / f"{name}.pid"
            if path.exists():
                os.kill(int(path.read_text()), signal.SIGKILL)

    def _output(self, *command: str) -> str:
        done = self._run(*command)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    def _wait_until(self, holds, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, (self.folder / "log" / "slurmctld.log").read_text()[-3000:]
            time.sleep(0.05)

    def finish(self, stop: Stop | None = None) -> dict[str, list[str]]:
        """Wait until no job is left to run and return the states of each job's tasks, by its name.

        Jobs that had ended when this was called the last time are left out.
        """
        if stop is not None:
            self._wait_until(stop.when)
            (number,) = {job["JobId"] for job in self._jobs() if job["JobName"] == stop.name}
            self._output("scancel", "--batch", f"--signal={stop.signal}", number)
        self._wait_until(lambda: not self._output("squeue", "--noheader"))
        states: dict[str, list[str]] = {}
        for job in self._jobs():
            states.setdefault(job["JobName"], []).append(job["JobState"])
        self.statuses = {job["JobName"]: int(job["ExitCode"].split(":")[0]) for job in self._jobs()}
        self._past |= {job["JobId"] for job in self._jobs()}
        return states

    def _jobs(self) -> list[dict[str, str]]:
        lines = self._output("scontrol", "show", "job", "--oneliner").splitlines()
        jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
        return sorted((job for job in jobs if job["JobId"] not in self._past), key=lambda job: int(job["JobId"]))
