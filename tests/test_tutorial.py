"""The tutorial's modality: three files beside the package, no edit in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorials" / "spectrogram"


def d2v(folder: Path, *arguments: str, trust: str = "spectrogram") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(TUTORIAL), "D2V_TRUST": trust, "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("d2v")), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_modality_takes_one_frontend_one_data_file_one_yaml(tmp_path: Path) -> None:
    experiment = ["--config-dir", str(TUTORIAL / "conf"), "experiment=spectrogram_tiny"]
    short = ["trainer.max_steps=3", "global_batch_size=8", "trainer.precision=32-true", "trainer.log_every_n_steps=1"]
    run = d2v(tmp_path, "pretrain", *experiment, *short, "hydra.run.dir=run")
    assert run.returncode == 0, run.stderr
    assert "72 tokens" in run.stdout
    resumed = d2v(tmp_path, "pretrain", *experiment, *short, "trainer.max_steps=4", "hydra.run.dir=run", "resume=run")
    assert "step 4/4" in resumed.stderr, resumed.stderr

    refused = d2v(tmp_path, "evaluate", "checkpoint=run", "probe=knn", trust="")
    assert refused.returncode == 1
    assert "D2V_TRUST=spectrogram" in refused.stderr


@pytest.mark.slow
def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    """Word for word, of a shorter run; TIME is the one that there is."""
    folder = tmp_path / "spectrogram"
    shutil.copytree(TUTORIAL, folder, ignore=shutil.ignore_patterns("outputs", "__pycache__"))
    recipe = folder / "conf" / "experiment" / "spectrogram_tiny.yaml"
    assert "max_steps: 300\n" in recipe.read_text()
    recipe.write_text(recipe.read_text().replace("max_steps: 300\n", "max_steps: 3\n"))
    readme = (folder / "README.md").read_text()
    commands = [line.strip() for line in readme.splitlines() if line.startswith("    ")]
    assert [command.split()[:2] for command in commands] == [
        ["export", "PYTHONPATH=."], ["d2v", "pretrain"], ["d2v", "evaluate"], ["d2v", "export"],
    ]  # fmt: skip
    script = "\n".join(commands).replace("TIME", "$(ls outputs/spectrogram_tiny)")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    shell = ["bash", "-euc", script]
    ran = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "| features " in ran.stdout
    assert "| raw spectrograms |" in ran.stdout
    assert "| pretrained encoder, 3 steps |" in ran.stdout
    assert (folder / "my_encoder" / "encoder.safetensors").is_file()
    assert "torch.zeros(1, 96, 48" in (folder / "my_encoder" / "README.md").read_text()


def test_the_package_does_not_know_the_tutorial() -> None:
    root = TUTORIAL.parents[2]
    files = [*(root / "d2v").rglob("*.py"), *(root / "conf").rglob("*.yaml")]
    assert len(files) > 50
    assert not [path for path in files if "SpectrogramFrontend" in path.read_text()]
