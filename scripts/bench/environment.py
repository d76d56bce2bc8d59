"""Environment of the libraries that d2v is compared with: outside of the repository, on top of this one's packages.

PyTorch and all else that is installed here is used from here and stays as it is; only what is listed below is added, in
the exact versions that the comparisons were written for, without their dependencies.
"""

from __future__ import annotations

import os
import shlex
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = (
    "stable-pretraining==0.1.8",
    "lightly==1.6.0",
    # what the first imports:
    "cattrs==26.2.1",
    "kornia==0.9.0",
    "kornia_rs==0.2.0",
    "loguru==0.7.3",
    "prettytable==3.18.0",
    "requests-cache==1.3.3",
    "tabulate==0.10.0",
    "url-normalize==3.1.0",
    "wcwidth==0.9.4",
    # what the Trainer of transformers imports:
    "accelerate==1.15.0",
    "psutil==7.2.2",
)
COMPARED = ("stable-pretraining", "lightly", "timm", "transformers", "accelerate", "torch", "torchvision", "lightning")


def make(folder: Path) -> Path:
    """Make the environment, unless it is there with these packages, and return its interpreter.

    Args:
        folder: of the environment, outside of the repository.

    Raises:
        ValueError: the folder is in the repository, or holds something else.
        subprocess.CalledProcessError: the packages could not be installed; pip has said why.
    """
    folder = folder.resolve()
    if folder.is_relative_to(REPOSITORY):
        raise ValueError(f"--env {folder}: choose a folder outside of {REPOSITORY}")
    python, done = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(PACKAGES)
    if done.exists() and done.read_text() == wanted:
        return python
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise ValueError(f"--env {folder}: is not an environment and not empty; choose another folder")
    if not python.exists():
        venv.create(folder, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    here = [path for path in [*site.getsitepackages(), sysconfig.get_path("purelib")] if Path(path).is_dir()]
    lines = [f"import site; site.addsitedir({path!r})" for path in dict.fromkeys(here)]
    (packages / "of_the_project.pth").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", *PACKAGES]
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    done.write_text(wanted)
    return python


def rerun_inside(folder: Path) -> None:
    """Start the running script again with the environment's interpreter, unless that runs it already.

    Raises:
        SystemExit: the environment cannot be made.
    """
    try:
        python = make(folder)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"error: {error}") from error
    if Path(sys.prefix).resolve() != folder.resolve():
        sys.stdout.flush()
        os.execv(python, [str(python), *sys.argv])


def versions() -> dict[str, str]:
    """Versions of the packages that are compared, and of those they compute with."""
    from importlib import metadata

    found = {}
    for name in COMPARED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
