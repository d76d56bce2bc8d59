"""``d2v evaluate checkpoint=[A,B]``: several checkpoints in one table, on the same data."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

KNN = ["probe=knn", "probe.k=5"]


@pytest.fixture(scope="module")
def trained(runs: ModuleType, images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs: two of one shape, and a deeper one on inputs of another size."""
    folder = tmp_path_factory.mktemp("runs")
    options = [["seed=0"], ["seed=1"], ["model.encoder.depth=2", "data.img_size=35"]]
    return [
        runs.pretrain(folder / name, *runs.folder_data(images), "trainer.max_steps=2", *given)
        for name, given in zip("abc", options, strict=True)
    ]


def _names(out: str) -> list[str]:
    return [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")][1:]


def test_inputs_once_and_an_untrained_encoder_for_every_shape(
    runs: ModuleType, trained: list[Path], tmp_path: Path
) -> None:
    listed = f"checkpoint=[{','.join(map(str, trained))}]"
    result = runs.d2v_command("evaluate", listed, f"output_dir={tmp_path}", *KNN)
    assert result.status in (0, None), result.err
    first, second, third = (str(path.relative_to(path.parents[2])) for path in trained)
    assert _names(result.out) == [
        "raw pixels",
        f"untrained encoder of the shape of {first}, 2 steps",
        f"{first}, 2 steps",
        f"{second}, 2 steps",
        f"untrained encoder of the shape of {third}, 2 steps",
        f"{third}, 2 steps",
    ]
    (folder,) = (tmp_path / "evaluate").iterdir()  # of no single run
    results = json.loads((folder / "results.json").read_text())
    assert results["step"] == [2, 2, 2]
    assert [str(path) in origin for path, origin in zip(trained, results["checkpoint"], strict=True)] == [True] * 3
    assert len(results["rows"]) == 6
    for row in results["rows"]:  # so that nobody waits without a word
        assert f"\n{row['name']}: kNN {100 * row['scores']['knn']:.1f} % (" in "\n" + result.err


def test_each_has_the_scores_that_it_has_alone(runs: ModuleType, trained: list[Path], tmp_path: Path) -> None:
    def rows(checkpoint: str) -> list[str]:
        result = runs.d2v_command("evaluate", f"checkpoint={checkpoint}", f"output_dir={tmp_path}", *KNN)
        assert result.status in (0, None), result.err
        return [line.split("|")[2].strip() for line in result.out.splitlines() if line.startswith("| ")][1:]

    together = rows(f"[{trained[0]},{trained[2]}]")
    assert together[:3] == rows(str(trained[0]))
    assert together[3:] == rows(str(trained[2]))[1:]


def test_errors_of_a_list(runs: ModuleType, trained: list[Path], tmp_path: Path) -> None:
    result = runs.d2v_command("evaluate", "checkpoint=[]", f"output_dir={tmp_path}")
    assert (result.status, "error: checkpoint=[]: give" in result.err) == (1, True), result.err
    result = runs.d2v_command("evaluate", f"checkpoint=[{trained[0]},{tmp_path}/none]", f"output_dir={tmp_path}")
    assert (result.status, f"{tmp_path}/none" in result.err) == (1, True), result.err
    result = runs.d2v_command("extract", f"checkpoint=[{trained[0]},{trained[1]}]", f"output={tmp_path}/f.npz")
    assert (result.status, "give a path" in result.err) == (1, True), result.err
