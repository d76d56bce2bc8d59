"""Slurm: check whether jobs can be submitted, and requeue the current job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

from d2v.errors import how_to_install


def check_launcher() -> None:
    """Raise ImportError or OSError if ``launcher=slurm`` cannot submit from here."""
    if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        raise ImportError(f"launcher=slurm needs submitit's launcher: {how_to_install('slurm')}")
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise OSError("launcher=slurm: there is no sbatch or no srun here; submit from a machine of the cluster's")


def requeue(resume: str | None, is_global_zero: bool) -> None:
    """Requeue this job, which then resumes by ``resume=auto``, and end this process.

    Rank 0 sends the request. All ranks end by SystemExit, so that submitit does not take this for the job's result.
    With another ``resume`` the job would start from the beginning each time: it is not requeued, and this returns.

    Args:
        resume: value of ``resume``.
        is_global_zero: whether this is rank 0.
    """
    if resume != "auto":
        if is_global_zero:
            print(f"resume={resume}: Slurm is not asked to run this job again, which takes resume=auto", flush=True)
        return
    if is_global_zero:
        env = os.environ
        array = env.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
        print(f"asking Slurm to run job {job} again", flush=True)
        subprocess.run(["scontrol", "requeue", job], check=True)
    sys.exit(0)
