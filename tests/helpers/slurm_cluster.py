"""A real Slurm on this machine, of Debian's packages: two nodes that are two slurmd's, everything in one folder."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ports import free_ports

PLUGIN = ("snakemake-executor-plugin-slurm==2.8.0", "snakemake-executor-plugin-slurm-jobstep==0.6.1")
DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
# A requeued job waits until credentials expire. No cgroups, no accounting; a node has more cores and memory than the machine,
# as the profile asks for a cluster's.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=200000 Gres=gpu:3
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=200000 Gres=gpu:3
PartitionName=work Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10
"""

COMMAND = """#!/bin/sh
SLURM_CONF={conf} exec {path} "$@"
"""


def missing() -> str:
    """Why this machine cannot have a Slurm of its own, or nothing."""
    if os.geteuid():
        return "Slurm's daemons are started by root alone"
    found = os.environ["PATH"] + ":/usr/sbin"
    if lacking := [name for name in (*DAEMONS, *COMMANDS) if not shutil.which(name, path=found)]:
        return f"Slurm is not installed, there is no {lacking[0]}: apt-get install slurm-wlm munge"
    return ""


def with_plugin(folder: Path) -> Path | None:
    """The interpreter of an environment that has this one's packages and snakemake's plugin, None where pip has no plugin."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, *PLUGIN]
    done = subprocess.run(pip, capture_output=True)
    return folder / "bin/python" if done.returncode == 0 else None


class Slurm:
    """A running one: `env` is what its commands want."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin"
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
        self.started: list[subprocess.Popen] = []

    def daemon(self, *command: str | Path) -> None:
        log = (self.folder / f"{command[0]}.out").open("a")
        process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.started.append(process)

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log")))

    def start(self) -> None:
        self.folder.mkdir(mode=0o755)
        for name in ("state", "n1", "n2", "bin"):
            (self.folder / name).mkdir()
        for name in COMMANDS:  # snakemake's plugin takes SLURM_CONF from a job's environment
            (self.folder / "bin" / name).write_text(COMMAND.format(conf=self.folder / "slurm.conf", path=shutil.which(name)))
            (self.folder / "bin" / name).chmod(0o755)
        host = socket.gethostname().split(".")[0]
        (self.folder / "slurm.conf").write_text(CONF.format(host=host, folder=self.folder, ports=free_ports(3)))
        for number in range(3):  # GPUs by name, with nothing behind them
            os.mknod(self.folder / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-2]\n")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        files = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self.daemon("munged", "--foreground", "--force", f"--key-file={key}", *options)
        wait(lambda: (self.folder / "munge.socket").exists(), "munged", self)
        self.daemon("slurmctld", "-D", "-f", self.folder / "slurm.conf")
        for node in ("n1", "n2"):
            self.daemon("slurmd", "-D", "-N", node, "-f", self.folder / "slurm.conf")
        idle = ("sinfo", "--noheader", "--partition", "work", "--format", "%T %D")
        wait(lambda: self.try_ask(*idle) == "idle 2", "two idle nodes", self)

    def try_ask(self, *command: str) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60).stdout.strip()

    def stop(self) -> None:
        """Ends jobs, then daemons; what does not go is killed."""
        self.try_ask("scancel", "--user", "root")
        wait(lambda: not self.try_ask("squeue", "--noheader"), "no job", self, seconds=20, must=False)
        for process in reversed(self.started):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.started):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        left = self.left()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)

    def left(self) -> list[psutil.Process]:
        """Steps and what they run, which outlive their daemons: they have this Slurm's commands, or its logs open."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                commands = process.environ().get("PATH", "").startswith(f"{self.folder / 'bin'}:")
                if commands or any(file.path.startswith(f"{self.folder}/") for file in process.open_files()):
                    found.append(process)
        return found


def wait(done, what: str, slurm: Slurm, seconds: float = 60.0, must: bool = True) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            assert not must, f"{what} did not come within {seconds:.0f} s\n{slurm.logs()}"
            return
        time.sleep(0.2)


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """A Slurm that lives as long as the block, in a folder that does not exist yet."""
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
