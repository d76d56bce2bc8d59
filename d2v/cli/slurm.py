"""Jobs under Slurm: asking it to start this very job again."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NoReturn


def requeue(is_global_zero: bool) -> NoReturn:
    """Have Slurm run this job again, where it goes on by ``resume=auto``, and end this process.

    The first process asks. All end by SystemExit, so that submitit does not take this for the job's result.

    Args:
        is_global_zero: whether this is the first process.
    """
    if is_global_zero:
        env = os.environ
        array = env.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
        print(f"asking Slurm to run job {job} again", flush=True)
        subprocess.run(["scontrol", "requeue", job], check=True)
    sys.exit(0)
