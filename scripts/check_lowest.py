"""Install the lowest versions that pyproject.toml allows, and see that d2v works with them.

``python scripts/check_lowest.py`` makes an environment in a scratch folder (some gigabytes), imports every module of
d2v there, and pretrains, scores and exports a tiny encoder. ``--extras speech,text`` installs those extras too.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]

# Imports that an environment may lack: those of extras.
IMPORT_ALL = """
import importlib, pkgutil, sys
import d2v
for module in pkgutil.walk_packages(d2v.__path__, "d2v."):
    if ".remote." not in module.name and module.name not in sys.argv[1:]:
        importlib.import_module(module.name)
"""
TINY = [
    "model.encoder.embed_dim=32", "model.encoder.depth=1", "model.encoder.num_heads=2",
    "model.decoders.image.decoder_dim=16", "model.decoders.image.groups=4", "model.average_top_k_layers=1",
    "global_batch_size=4", "trainer.max_steps=2", "schedule.warmup_steps=1", "trainer.accelerator=cpu",
]  # fmt: skip


def lowest(requirements: Sequence[str]) -> list[str]:
    """Return every requirement at its lower bound.

    Raises:
        ValueError: one has none.
    """
    pins = []
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement}: give a lower bound, as in {requirement}>=1.0")
        pins.append(f"{match[1]}=={match[2]}")
    return pins


def main() -> None:
    """Make the environment and use it; the exit status says whether all went well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default="plots,text", help="of pyproject.toml, separated by commas")
    parser.add_argument("--environment", type=Path, help="folder to keep; a scratch folder if not given")
    arguments = parser.parse_args()
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in filter(None, arguments.extras.split(",")):
        wanted += project["optional-dependencies"][extra]
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.environment or Path(scratch) / "environment"
        if not (folder / "bin" / "python").exists():
            venv.create(folder, with_pip=True)
        use(folder / "bin", lowest(wanted), Path(scratch))
    print("the lowest versions work")


def use(programs: Path, requirements: Sequence[str], scratch: Path) -> None:
    """Install into an environment, and run what a user would."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}

    def run(*command: str | Path) -> None:
        print("$", *command, flush=True)
        subprocess.run(list(map(str, command)), cwd=scratch, env=environment, check=True)

    run(programs / "python", "-m", "pip", "install", "--quiet", "setuptools>=77", *requirements)
    run(programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", REPO)
    run(programs / "python", "-P", "-c", IMPORT_ALL, "d2v.interop.auto")
    run(programs / "d2v", "info")
    run(programs / "d2v", "pretrain", *TINY, "hydra.run.dir=run")
    run(programs / "d2v", "evaluate", "checkpoint=run", "probe=knn", "output_dir=scores")
    run(programs / "d2v", "export", "checkpoint=run", "output=encoder")
    run(programs / "d2v", "info", "checkpoint=encoder")


if __name__ == "__main__":
    main()
