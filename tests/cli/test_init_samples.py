"""A start from statistics of the training text, from the configuration to the weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

# So slow that four steps change no embedding by more than a ten-thousandth.
STILL = ["optim.lr=1e-9", "optim.weight_decay=0", "data.vocab_size=300", "experiment=text_tiny"]


@pytest.fixture(scope="module")
def text_run(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a tiny run on text that hardly trains."""
    folder = tmp_path_factory.mktemp("text")
    data = ["data=text_files", f"data.root={runs.text_file(folder / 'text.txt')}", f"data.cache={folder / 'cache'}"]
    common = [o for o in runs.TINY if o.partition("=")[0].split(".")[0] in ("global_batch_size", "trainer", "schedule")]
    return [*STILL, *runs.SMALL["text"], *data, *common, "callbacks.checkpoint.keep=-1", "num_threads=1"]


def _embeddings(runs: ModuleType, folder: Path, network: str, *overrides: str) -> torch.Tensor:
    result = runs.d2v_command("pretrain", f"hydra.run.dir={folder}", *overrides)
    assert result.status in (0, None), result.err
    state = runs.load(folder, 4)["state_dict"]
    weight: torch.Tensor = state[f"model.{network}.frontends.text.token_embed.weight"]
    return weight


def test_student_and_teacher_start_from_the_counts_of_all_samples(
    runs: ModuleType, text_run: list[str], tmp_path: Path
) -> None:
    random = _embeddings(runs, tmp_path / "random", "student", *text_run, "init_samples=0")
    student = _embeddings(runs, tmp_path / "counted", "student", *text_run, "init_samples=1000000")
    teacher = _embeddings(runs, tmp_path / "again", "teacher", *text_run, "init_samples=1000000")
    torch.testing.assert_close(student, teacher, rtol=0, atol=1e-4)
    lengths = student.norm(dim=1)
    counted = (lengths - 0.5 * 32**0.5).abs() < 1e-3
    assert int(counted.sum()) > 20
    torch.testing.assert_close(student[~counted], random[~counted], rtol=0, atol=1e-4)
    assert not torch.allclose(student[counted], random[counted], atol=0.1)


def test_few_samples_are_enough_to_ask_for(runs: ModuleType, text_run: list[str], tmp_path: Path) -> None:
    one = _embeddings(runs, tmp_path / "one", "student", *text_run, "init_samples=1")
    two = _embeddings(runs, tmp_path / "two", "student", *text_run, "init_samples=2")
    assert not torch.allclose(one, two, atol=0.1)


def test_images_are_refused(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    folder = [*runs.folder_data(images), "init_samples=8"]
    result = runs.d2v_command("pretrain", *runs.TINY, *folder, f"output_dir={tmp_path}")
    assert result.status == 1
    assert "init_samples: a ImageFrontend has no start from statistics" in result.err
    assert "Traceback" not in result.err
