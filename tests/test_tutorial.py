"""The tutorial's modality: three files beside the package, no edit in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorials" / "spectrogram"


@pytest.mark.slow
def test_a_modality_takes_one_frontend_one_data_file_one_yaml(tmp_path: Path) -> None:
    """The README's commands, word for word, of a shorter run (TIME is the one there is); resuming; trust."""
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
    run = "outputs/spectrogram_tiny/TIME"
    commands += [
        f"{commands[1]} trainer.max_steps=4 resume={run}",
        f"! D2V_TRUST= d2v evaluate checkpoint={run} probe=knn",
    ]
    script = "\n".join(commands).replace("TIME", "$(ls outputs/spectrogram_tiny)")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    shell = ["bash", "-euc", script]
    ran = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "72 tokens" in ran.stdout
    assert "| raw spectrograms " in ran.stdout
    assert "| pretrained encoder, 3 steps |" in ran.stdout
    assert (folder / "my_encoder" / "encoder.safetensors").is_file()
    assert "torch.zeros(1, 96, 48" in (folder / "my_encoder" / "README.md").read_text()
    assert "step 4/4" in ran.stderr
    assert "D2V_TRUST=spectrogram" in ran.stderr


def test_the_package_does_not_know_the_tutorial() -> None:
    root = TUTORIAL.parents[2]
    files = [*(root / "d2v").rglob("*.py"), *(root / "conf").rglob("*.yaml")]
    assert len(files) > 50
    assert not [path for path in files if "SmallFrontend" in path.read_text()]
