"""The wheel is complete: built from what git knows, installed elsewhere, used from outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]

_PROGRAM = """
import os, sys
import d2v, d2v.conf
home = os.environ["INSTALLED"]
for module in (d2v, d2v.conf):
    assert module.__file__.startswith(home), module.__file__
from d2v.cli import launch, main
from hydra import compose, initialize_config_module
names = main.options("experiment")
for name in names:
    with initialize_config_module("d2v.conf", version_base="1.3"):
        cfg = compose("pretrain", overrides=[f"experiment={name}"])
        assert cfg.model._target_ and cfg.trainer.max_steps > 0
for module in [m for n, m in sys.modules.items() if n.startswith("d2v")]:
    assert module.__file__.startswith(home), module.__file__
print("EXPERIMENTS", len(names))
sys.argv = ["d2v", "pretrain", *sys.argv[1:]]
main.main()
"""


def _run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without network from a copy of what git would commit."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=REPO, capture_output=True, text=True
    )
    assert listed.returncode == 0, "the tree to package is what git knows: " + listed.stderr
    for name in listed.stdout.splitlines():
        if (REPO / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPO / name, source / name)
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)], folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_holds_everything(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        text = {
            name.rpartition("/")[2]: archive.read(name).decode()
            for name in names
            if name.endswith(("METADATA", "entry_points.txt"))
        }
    for path in (REPO / "conf").rglob("*.yaml"):
        assert f"d2v/conf/{path.relative_to(REPO / 'conf').as_posix()}" in names
    for path in (REPO / "d2v").rglob("*"):
        if path.suffix in (".py", ".gz", ".LICENSE", ".typed") and "__pycache__" not in path.parts:
            assert f"d2v/{path.relative_to(REPO / 'd2v').as_posix()}" in names, path
    assert {"d2v/py.typed", "d2v/conf/__init__.py", "d2v/data/samples/fashion_mnist.LICENSE"} <= names
    licences = {name.rpartition("/")[2] for name in names if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", *(path.name for path in (REPO / "d2v" / "data" / "samples").glob("*.LICENSE"))}
    assert {name.split("/")[0] for name in names} == {"d2v", next(n for n in names if ".dist-info" in n).split("/")[0]}
    assert not [name for name in names if name.endswith((".pyc", ".ckpt"))]
    licence = "Apache-2.0 AND MIT AND CC-BY-SA-3.0 AND LicenseRef-WordNet-3.0"
    assert f"License-Expression: {licence}\n" in text["METADATA"]
    assert "d2v = d2v.cli.main:main" in text["entry_points.txt"]


@pytest.mark.slow
def test_works_installed_from_any_directory(wheel: Path, tmp_path: Path) -> None:
    installed, work = tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    _run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile",
         "--disable-pip-version-check", "--target", str(installed), str(wheel)],
        work,
    )  # fmt: skip
    paths = {"PYTHONPATH": str(installed), "INSTALLED": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    text = _run([sys.executable, "-m", "d2v.cli.main", "--help"], work, **paths).stdout
    assert "pretrain" in text
    assert (installed / "bin" / "d2v").exists()
    experiments = len(list((REPO / "conf" / "experiment").rglob("*.yaml")))
    tiny = [
        "model.encoder.embed_dim=32", "model.encoder.depth=1", "model.encoder.prenet_depth=1",
        "model.encoder.num_heads=2", "model.decoders.image.decoder_dim=16", "model.decoders.image.depth=1",
        "model.average_top_k_layers=1", "mask.num_masks=2", "global_batch_size=4", "trainer.max_steps=2",
        "num_threads=1", "trainer.accelerator=cpu", "output_dir=runs",
    ]  # fmt: skip
    result = _run([sys.executable, "-c", _PROGRAM, *tiny], work, **paths)
    assert f"EXPERIMENTS {experiments}\n" in result.stdout
    assert experiments > 0
    assert len(list(work.rglob("step-00000002.ckpt"))) == 1
    assert [path.name for path in work.iterdir()] == ["runs"]
