"""d2v on a real Slurm: a one-machine cluster in a scratch folder, jobs that are requeued, and the weights at the end.

    python scripts/prove_slurm.py

Needs root, two cores, and Debian's ``slurm-wlm`` and ``munge`` (``apt-get install slurm-wlm munge``). Exits with 1 if
anything differs from what it says.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

BIN = Path(sys.executable).parent
STEPS = 60
RUN = [
    "model.encoder.embed_dim=64", "model.encoder.depth=1", "model.encoder.num_heads=2", "model.average_top_k_layers=1",
    "mask.num_masks=2", "global_batch_size=8", f"trainer.max_steps={STEPS}", "trainer.accelerator=cpu",
    "trainer.precision=32-true", "trainer.log_every_n_steps=10", "num_threads=1", "schedule.warmup_steps=5",
    "callbacks.checkpoint.every_n_steps=10", "callbacks.health.min_spread=null",
]  # fmt: skip
# What makes every step take time, so that there is time to interrupt: in all processes whose PYTHONPATH holds it.
SLOW = """
import os, time
from d2v.models.data2vec2 import Data2Vec2
forward = Data2Vec2.forward
seconds = float(os.environ.get("STEP_SECONDS", 0.7))
Data2Vec2.forward = lambda self, batch: (time.sleep(seconds), forward(self, batch))[1]
"""


def shell(*command: str, **options: object) -> str:
    """Return the output of a command."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stdout}{result.stderr}")
    return str(result.stdout)


class Cluster:
    """munged, slurmctld and slurmd, with all of their files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        # Without an empty name, which would mean the current folder.
        paths = [str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self.env["PYTHONPATH"] = os.pathsep.join(paths)
        host, ports = socket.gethostname().split(".")[0], (26817, 26818)
        (folder / "slurm.conf").write_text(
            f"ClusterName=proof\nSlurmctldHost={host}\nSlurmUser=root\nSlurmctldPort={ports[0]}\nSlurmdPort={ports[1]}\n"
            f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge.socket\nProctrackType=proctrack/linuxproc\n"
            f"TaskPlugin=task/none\nSelectType=select/cons_tres\nReturnToService=2\nKillWait=10\nMpiDefault=none\n"
            f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool\nSlurmctldLogFile={folder}/slurmctld.log\n"
            f"SlurmdLogFile={folder}/slurmd.log\nSlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd.pid\n"
            f"SchedulerParameters=sched_interval=1,requeue_delay=1\nJobRequeue=1\nOverTimeLimit=0\n"
            f"NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN\n"
            f"PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
        )

    def __enter__(self) -> Cluster:
        folder = self.folder
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge" / "key"
        key.parent.mkdir()
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for path in (key.parent, key):
            shutil.chown(path, "munge", "munge")
        munge = [f"--{name}={folder}/munge/{name}" for name in ("log-file", "pid-file", "seed-file")]
        shell(
            "runuser", "-u", "munge", "--", "munged", f"--key-file={key}", f"--socket={folder}/munge/socket", *munge,
            "--force",
        )  # fmt: skip
        (folder / "munge.socket").symlink_to(folder / "munge" / "socket")
        key.parent.chmod(0o755)
        shell("slurmctld", env=self.env)
        shell("slurmd", env=self.env)
        for _ in range(60):
            if "idle" in shell("sinfo", "-h", "-o", "%t", env=self.env):
                return self
            time.sleep(1)
        raise RuntimeError((folder / "slurmctld.log").read_text() + (folder / "slurmd.log").read_text())

    def __exit__(self, *error: object) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.env, check=False)
        time.sleep(2)
        for name in ("slurmd.pid", "slurmctld.pid", "munge/pid-file"):
            if (self.folder / name).is_file():
                subprocess.run(["kill", (self.folder / name).read_text().strip()], check=False)

    def submit(self, name: str, limit: str = "30", options: tuple[str, ...] = (), step_seconds: float = 0.7) -> str:
        """A batch job of two tasks, two ranks of one run, whose steps take so long at least.

        Returns:
            Its number.
        """
        script = self.folder / f"{name}.sbatch"
        arguments = " ".join(["pretrain", *RUN, f"output_dir={self.folder / name}", "trainer.devices=2"])
        script.write_text(
            "#!/bin/bash\n#SBATCH --requeue --open-mode=append --ntasks-per-node=2 --cpus-per-task=1\n"
            f"STEP_SECONDS={step_seconds} srun {BIN}/d2v {arguments} resume=auto\n"
        )
        out = shell(
            "sbatch", "--parsable", f"--job-name={name}", f"--time={limit}", f"--output={self.folder}/{name}.out",
            *options, str(script), env=self.env,
        )  # fmt: skip
        return out.strip()

    def state(self, job: str) -> str:
        """Return the state of a job by Slurm."""
        match = re.search(r"JobState=(\w+)", shell("scontrol", "show", "job", job, env=self.env))
        return match[1] if match else "UNKNOWN"

    def restarts(self, job: str) -> int:
        """Return the number of times that it was requeued."""
        match = re.search(r"Restarts=(\d+)", shell("scontrol", "show", "job", job, env=self.env))
        return int(match[1]) if match else 0

    def wait(self, job: str, log: Path) -> None:
        """Until it is done."""
        for _ in range(900):
            state = self.state(job)
            if state == "COMPLETED":
                return
            if state in ("FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"):
                raise RuntimeError(f"job {job}: {state}\n{log.read_text() if log.exists() else ''}")
            time.sleep(1)
        raise RuntimeError(f"job {job} does not end\n{log.read_text()}")

    def at_step(self, log: Path, step: int) -> None:
        """Wait until a job's output has come to a step."""
        for _ in range(800):  # Slurm holds a requeued job for two minutes
            if log.exists() and f"step {step}/" in log.read_text():
                return
            time.sleep(0.5)
        raise RuntimeError(log.read_text() if log.exists() else f"{log} is not there")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The last checkpoint of the one run in a folder."""
    (path,) = folder.rglob(f"step-{STEPS:08d}.ckpt")
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Return whether all weights, the teacher's too, are equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def main() -> int:
    """Run it all; print a line a proof."""
    folder = Path(tempfile.mkdtemp(prefix="d2v-slurm-"))
    (folder / "sitecustomize.py").write_text(SLOW)
    failed = 0

    def report(what: str, fine: bool) -> None:
        nonlocal failed
        failed += not fine
        print(f"{'ok  ' if fine else 'FAIL'} {what}", flush=True)

    with Cluster(folder) as cluster:
        print(shell("sinfo", "--version", env=cluster.env).strip(), flush=True)
        whole = cluster.submit("whole")
        cluster.wait(whole, folder / "whole.out")
        ranks = len(re.findall(r"GLOBAL_RANK: \d, MEMBER: \d/2", (folder / "whole.out").read_text()))
        end = weights(folder / "whole")
        report(f"sbatch: two tasks are two ranks of one run, in one folder; {STEPS} steps", ranks == 2)

        job, log = cluster.submit("requeued"), folder / "requeued.out"
        for step in (20, 40):
            cluster.at_step(log, step)
            shell("scontrol", "requeue", job, env=cluster.env)
        cluster.wait(job, log)
        times = cluster.restarts(job)
        report(
            f"scontrol requeue: requeued {times} times, the same weights",
            times == 2 and same(end, weights(folder / "requeued")),
        )

        # Slurm sends it up to a minute early: between the first and the second minute, when the run is not at its end.
        signal = ("--signal=USR1@60",)
        job, log = cluster.submit("signal", "3", signal, step_seconds=2.2), folder / "signal.out"
        cluster.at_step(log, 10)
        cluster.wait(job, log)
        times = cluster.restarts(job)
        fine = times >= 1 and same(end, weights(folder / "signal")) and "asking Slurm to run job" in log.read_text()
        report(f"--signal=USR1@60, a time limit of 3 minutes: requeued itself {times} times, the same weights", fine)

        launcher = [
            "launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1",
            "hydra.launcher.timeout_min=10",
        ]  # fmt: skip
        sweep = [str(BIN / "d2v"), "pretrain", *launcher, *RUN, "seed=0,1", f"hydra.sweep.dir={folder / 'sweep'}"]
        shell(*sweep, env=cluster.env)
        ends = [weights(folder / "sweep" / str(number)) for number in range(2)]
        report("launcher=slurm seed=0,1: an array of two jobs, two runs", not same(*ends))

        job, log = submitit(cluster, launcher)
        cluster.wait(job, log)
        times = cluster.restarts(job)
        fine = times == 1 and same(ends[0], weights(folder / "launched"))
        report(f"launcher=slurm, SIGUSR2: requeued itself {times} time, the weights of seed 0", fine)
    if failed:
        print(f"files: {folder}")
    else:
        shutil.rmtree(folder)
    return int(failed > 0)


def submitit(cluster: Cluster, launcher: list[str]) -> tuple[str, Path]:
    """A job of the launcher's, told in mid-run that its time is over."""
    folder = cluster.folder / "launched"
    command = [str(BIN / "d2v"), "pretrain", *launcher, *RUN, "seed=0"]
    subprocess.Popen(
        [*command, f"hydra.sweep.dir={folder}"], env=cluster.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(300):
        jobs = re.findall(r"^\s*(\d+)\S*\s+R", shell("squeue", "-h", "-o", "%A %t", env=cluster.env), re.M)
        checkpoints = list(folder.rglob("step-*20.ckpt"))
        if jobs and checkpoints:
            shell("scancel", "--signal=USR2", jobs[0], env=cluster.env)
            return jobs[0], cluster.folder / "none"
        time.sleep(0.5)
    raise RuntimeError("the launcher's job does not run")


if __name__ == "__main__":
    sys.exit(main())
