"""From a tiny run to what it hands on: evaluate, extract, export, info; several runs at once."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader

import d2v
from d2v.eval.features import extract
from d2v.nn.attention import Attention

KNN = ["probe=knn", "probe.k=5"]


@pytest.fixture(scope="module")
def run(runs: ModuleType, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose student, teacher and initial weights differ."""
    return runs.pretrain(
        tmp_path_factory.mktemp("run"), *runs.folder_data(images), "model.encoder.depth=2", "trainer.max_steps=3"
    )


def _data(runs: ModuleType, images: Path):  # type: ignore[no-untyped-def]
    from d2v.cli.settings import built

    with runs.configuration("pretrain", *runs.TINY, *runs.folder_data(images)) as cfg:
        return built(cfg, "data")


def _features(data, encoder, split: str, layers: str = "last"):  # type: ignore[no-untyped-def]
    loader = DataLoader(data.eval_dataset(split), batch_size=16, collate_fn=data.eval_collate)
    return extract(encoder, loader, layers=layers)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_evaluate_prints_a_table_with_both_baselines(runs: ModuleType, run: Path, tmp_path: Path) -> None:
    result = runs.d2v_command("evaluate", f"checkpoint={run}", f"output_dir={tmp_path}", "probe.k=5")
    assert result.status in (0, None), result.err
    rows = [line for line in result.out.splitlines() if line.startswith("| ")][1:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "raw pixels",
        "untrained encoder",
        "pretrained encoder, 3 steps",
    ]
    for row in rows:
        for cell in row.split("|")[2:4]:
            assert 0 <= float(cell) <= 100
    (folder,) = (tmp_path / "evaluate").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert "step-00000003.ckpt" in json.dumps(results)
    assert len(_find_rows(results)) == 3
    assert (folder / "results.md").read_text().strip() in result.out
    assert str(folder / "results.json") in result.out


def test_results_of_evaluation_lie_with_the_run(runs: ModuleType, run: Path) -> None:
    result = runs.d2v_command("evaluate", f"checkpoint={run}", "baselines=false", *KNN)
    assert result.status in (0, None), result.err
    (folder,) = (run / "evaluate").iterdir()
    assert f"results: {folder / 'results.json'}" in result.out


def _find_rows(results: dict) -> list:  # type: ignore[type-arg]
    (rows,) = [value for value in results.values() if isinstance(value, list)]
    return rows


def test_evaluate_in_bfloat16(runs: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder computes in it, the probes do not; a precision that is none is named under this command's key."""
    dtypes = []
    forward = Attention.forward
    monkeypatch.setattr(
        Attention, "forward", lambda self, x, bias=None: (dtypes.append(self.qkv(x).dtype), forward(self, x, bias))[1]
    )
    command = ["evaluate", f"checkpoint={run}", f"output_dir={tmp_path}", *KNN, "baselines=false"]
    assert "pretrained encoder" in runs.d2v_command(*command).out
    assert set(dtypes) == {torch.float32}
    dtypes.clear()
    assert "pretrained encoder" in runs.d2v_command(*command, "precision=bf16-mixed").out
    assert set(dtypes) == {torch.bfloat16}
    refused = runs.d2v_command(*command, "precision=16")
    assert refused.status == 1
    assert "error: precision=16: choose one of auto, 32-true, bf16-mixed" in refused.err


def test_evaluate_is_repeatable(runs: ModuleType, run: Path, tmp_path: Path) -> None:
    tables = []
    for i in range(2):
        torch.manual_seed(i)
        result = runs.d2v_command("evaluate", f"checkpoint={run}", f"output_dir={tmp_path}", *KNN)
        tables.append([line for line in result.out.splitlines() if line.startswith("|")])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 5


def test_evaluate_on_other_data_and_networks(runs: ModuleType, run: Path, tmp_path: Path) -> None:
    other = runs.image_folder(tmp_path / "other", train=8, val=4)
    result = runs.d2v_command(
        "evaluate", f"checkpoint={run}", f"output_dir={tmp_path}", *KNN, "network=teacher", "baselines=false",
        "num_workers=1", "data=image_folder", f"data.root={other}", "probe.layers=average", "probe.pool=cls",
    )  # fmt: skip
    assert result.status in (0, None), result.err
    assert len([line for line in result.out.splitlines() if line.startswith("| ")]) == 2


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_export_is_bit_equal_to_the_checkpoint(
    runs: ModuleType, run: Path, images: Path, tmp_path: Path, network: str
) -> None:
    folder = tmp_path / "encoder"
    result = runs.d2v_command("export", f"checkpoint={run}", f"output={folder}", f"network={network}")
    assert result.status in (0, None), result.err
    assert str(folder) in result.out
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "config.yaml",
        "encoder.safetensors",
    ]
    encoder = d2v.load_encoder(folder)
    assert not encoder.training
    saved = runs.load(run, 3)["state_dict"]
    prefix = f"model.{network}."
    expected = {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
    assert not runs.differences(dict(encoder.state_dict()), expected)
    other = "teacher" if network == "student" else "student"
    assert any(not torch.equal(value, saved[f"model.{other}.{name}"]) for name, value in expected.items())

    card = (folder / "README.md").read_text()
    assert "load_encoder" in card
    assert f"the {network} after 3 optimizer steps" in card

    data = runs.folder_data(images)  # an export does not say where they lie
    table = runs.d2v_command("evaluate", f"checkpoint={folder}", f"output_dir={tmp_path}", *KNN, *data).out
    direct = runs.d2v_command("evaluate", f"checkpoint={run}", f"network={network}", f"output_dir={tmp_path}", *KNN).out
    scores = [[line.split("|")[2:] for line in text.splitlines() if line.startswith("| ")] for text in (table, direct)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 4


def test_export_of_an_export_and_start_from_one(runs: ModuleType, run: Path, images: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for source, output in ((run, first), (first, second)):
        assert runs.d2v_command("export", f"checkpoint={source}", f"output={output}").status in (0, None)
    states = [dict(d2v.load_encoder(folder).state_dict()) for folder in (first, second)]
    assert not runs.differences(*states)
    started = runs.pretrain(
        tmp_path / "new", *runs.folder_data(images), "model.encoder.depth=2", f"init_from={first}",
        "trainer.max_steps=1", "optim.lr=0", "ema.decay_start=1", "ema.decay_end=1",
    )  # fmt: skip
    state = runs.load(started, 1)["state_dict"]
    for name, value in d2v.load_encoder(first).state_dict().items():
        assert torch.equal(state[f"model.student.{name}"], value)
        assert torch.equal(state[f"model.teacher.{name}"], value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_extract_writes_features_with_ids_names_and_labels(
    runs: ModuleType, run: Path, images: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / "new" / f"features{suffix}"
    result = runs.d2v_command(
        "extract", f"checkpoint={run}", f"output={output}", "layers=all", "batch_size=5", "num_workers=1"
    )
    assert result.status in (0, None), result.err
    if suffix == ".npz":
        with np.load(output, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        names, classes = (arrays.pop(key).tolist() for key in ("names", "class_names"))
    else:
        with safe_open(output, "np") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            names, classes = (json.loads(file.metadata()[key]) for key in ("names", "class_names"))
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert classes == ["dark", "light"]
    assert arrays["features"].shape == (12, 2, 32)  # every shared block
    assert arrays["sample_ids"].tolist() == list(range(12))
    assert sorted(arrays["labels"].tolist()) == [0] * 6 + [1] * 6
    for name, label in zip(names, arrays["labels"], strict=True):
        assert ("dark" in name) == (label == 0)
    assert len(set(names)) == 12
    expected = _features(_data(runs, images), d2v.load_encoder(run), "val", "all")
    np.testing.assert_allclose(arrays["features"], expected.features.numpy(), rtol=1e-5, atol=1e-5)


def test_extract_one_layer_of_the_training_images(runs: ModuleType, run: Path, tmp_path: Path) -> None:
    output = tmp_path / "f.npz"
    for overrides, shape in (([], (24, 32)), (["pool=cls"], (24, 32)), (["pool=none"], (24, 16, 32))):
        result = runs.d2v_command("extract", f"checkpoint={run}", f"output={output}", "split=train", *overrides)
        assert result.status in (0, None), result.err
        with np.load(output) as file:
            assert file["features"].shape[-1] == shape[-1]
            assert file["features"].shape[0] == shape[0]
            if "pool=none" not in overrides:
                assert file["features"].shape == shape


def test_info_names_versions_and_the_checkpoint(runs: ModuleType, run: Path, tmp_path: Path) -> None:
    result = runs.d2v_command("info")
    assert result.status in (0, None), result.err
    for words in (f"d2v {d2v.__version__}", f"torch {torch.__version__.partition('+')[0]}", "lightning", "cores"):
        assert words in result.out
    result = runs.d2v_command("info", f"checkpoint={run}")
    assert "step 3" in result.out
    parameters = sum(p.numel() for p in d2v.load_encoder(run).parameters())
    assert f"{parameters:,} parameters" in result.out
    assert "1 + 2 blocks, width 32, 2 heads" in result.out
    runs.d2v_command("export", f"checkpoint={run}", f"output={tmp_path / 'e'}")
    assert "an export" in runs.d2v_command("info", f"checkpoint={tmp_path / 'e'}").out


def test_multirun_makes_a_folder_a_run(runs: ModuleType, tmp_path: Path) -> None:
    result = runs.d2v_command("pretrain", "-m", f"output_dir={tmp_path}", *runs.TINY, "trainer.max_steps=1", "seed=0,1")
    assert result.status in (0, None), result.err
    checkpoints = sorted(tmp_path.rglob("*.ckpt"))
    folders = [path.parent.parent for path in checkpoints]
    assert [folder.name for folder in folders] == ["0", "1"]
    assert folders[0].parent == folders[1].parent
    weights = [runs.load(folder, 1)["state_dict"] for folder in folders]
    assert runs.differences(*weights)  # two seeds
    alone = runs.pretrain(tmp_path / "alone", "trainer.max_steps=1", "seed=1")
    assert not runs.differences(runs.load(alone, 1)["state_dict"], weights[1])
    for folder, seed in zip(folders, (0, 1), strict=True):
        assert json.loads((folder / "run.json").read_text())[0]["seed"] == seed


def test_multirun_names_the_error_too(runs: ModuleType, tmp_path: Path) -> None:
    result = runs.d2v_command(
        "pretrain", "-m", f"output_dir={tmp_path}", *runs.TINY, "trainer.max_steps=1", "mask.num_masks=2,17"
    )
    assert result.status == 1
    assert "mask.num_masks=17" in result.err
    assert "Traceback" not in result.err
    assert len(list(tmp_path.rglob("*.ckpt"))) <= 1


def test_relative_paths_are_the_users(
    runs: ModuleType, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a directory that is not the checkout; nothing but what was asked for appears there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").symlink_to(images)
    run = runs.pretrain(Path("runs"), *runs.folder_data(Path("pictures")), "trainer.max_steps=1")
    for arguments in (
        ["extract", f"checkpoint={run}", "output=f.npz"],
        ["export", f"checkpoint={run}", "output=encoder"],
        ["info", f"checkpoint={run}"],
    ):
        result = runs.d2v_command(*arguments)
        assert result.status in (0, None), result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder", "f.npz", "pictures", "runs"]
