"""Agreement with the authors' code, and that the script which says so can also say no."""

from __future__ import annotations

import copy
import json
import math
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from edited_cases import GOLDEN_OF_1, Edit, copy_case, gradients, scale, swap, trained_teacher, write_case
from oracle_cases import golden_case
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = [
    "audio_base",
    "audio_padded",
    "eat_base",
    "image_base",
    "image_variant",
    "text_base",
    "text_padded",
    *GOLDEN_OF_1,
]


@pytest.fixture
def run_script(repo: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(repo / "scripts" / "check_parity.py"), str(folder), *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=120,
            check=False,
        )

    return run


FILES = ["audio", "eat", "eat_before_april_2024", "image", "text"]  # of fairseq's trainer

CHECKPOINTS = [*FILES, "eat_hf", "eat_hf_finetuned"]

READ_OF_1 = {"source", "target_tokens", "mask", "padding_mask", "student", "teacher", "teacher_after", "grad"}

NUMBERS_OF_1 = {"loss", "trajectory", "ema_decay_after_step", "sgd_lr"}  # beside the sizes of the model, all whole


@pytest.mark.parametrize("name", GOLDEN)
def test_every_quantity_of_a_golden_case_agrees(check_parity: ModuleType, golden_dir: Path, name: str) -> None:
    case = check_parity.Case.load(golden_dir / f"{name}.json")
    checks = list(check_parity.check_case(case))
    assert not [c for c in checks if not c[1] <= c[2]]
    # Nothing the case holds may go unchecked: every tensor group and every number of the description.
    quantities = {c[0] for c in checks}
    assert {q for q in quantities if q.startswith("grad/")} == gradients(case)
    assert {q for q in quantities if q.startswith("teacher_after/")} == trained_teacher(case)
    assert {f"trajectory/{i}" for i in range(5)} | {f"ema_decay/{i}" for i in range(5)} <= quantities
    if name in GOLDEN_OF_1:
        assert "loss" in quantities
        assert ("source" in quantities) == (name == "v1_text")  # the others' masks are not in the source
        assert case.tensors.keys() == {k for k in case.tensors if k.partition("/")[0] in READ_OF_1}
        assert {k for k, v in case.spec.items() if isinstance(v, float | list)} == NUMBERS_OF_1
    else:
        layers = {k for k in case.tensors if k.startswith("teacher_layer/")}
        assert {q for q in quantities if q.startswith("teacher_layer/")} == layers
        assert {
            "target", "target_masked", "pred", "sample_size", "masked_fraction", "target_std", "pred_std"
        } <= quantities  # fmt: skip
        assert {"features_after", "loss/regression"} <= quantities
        assert ("positions" in quantities) == name.startswith(("image", "eat"))  # the others learn theirs
        assert ("loss/cls" in quantities) == ("cls" in case.spec["losses"])
    # The tolerances are those of the golden files' README, and there is room below them.
    assert {c[2] for c in checks} <= {0.0, 1e-5, 1e-4}
    assert max(c[1] for c in checks if c[2] == 1e-5) < 8e-6


def test_script_accepts_the_golden_cases(
    run_script: Callable[..., subprocess.CompletedProcess[str]], golden_dir: Path
) -> None:
    done = run_script(golden_dir)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert done.stderr == ""
    assert "18 cases ran, 0 quantities out of tolerance" in done.stdout
    for name in [*GOLDEN, "eat_front", *(f"checkpoints/{name}" for name in CHECKPOINTS)]:
        assert f"\n{name}: " in done.stdout


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_output_of_a_checkpoint_is_checked(
    check_parity: ModuleType, golden_dir: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / (f"{name}.pt" if name in FILES else name)
    if name in FILES:
        path.write_bytes((golden_dir / "checkpoints" / path.name).read_bytes())
    else:
        shutil.copytree(golden_dir / "checkpoints" / name, path)
    expected = load_file(golden_dir / "checkpoints" / f"{name}.expected.safetensors")
    outputs = {key for key in expected if not key.startswith("source")}
    moved = {k: v * 1.001 if k in outputs else v for k, v in expected.items()}
    for tensors, broken in ((expected, set()), (moved, outputs)):
        save_file(tensors, path.with_suffix(".expected.safetensors"))
        check = check_parity.check_checkpoint if name in FILES else check_parity.check_outputs
        checks = list(check(path))
        assert {c[0] for c in checks if not c[1] <= c[2]} == broken
        round_trips = {f"round trip of the {who}" for who in ("student", "teacher") if name in FILES}
        assert outputs | round_trips <= {c[0] for c in checks}


def test_every_quantity_of_the_front_is_checked(
    main: Callable[..., int], golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is moved a little is out of tolerance: spectrograms, positions, rates, counts."""

    def move(spec: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for key, value in tensors.items():
            if key.startswith(("fbank", "padded", "truncated", "esc50", "spcv2", "positions")):
                value[0, 0] += 1e-3
            elif key.startswith("visible_rate"):
                value[0, 0] += 0.2
            elif key.startswith("mask/"):
                value[0, 0] = 1 - value[0, 0]

    assert main(copy_case(golden_dir, tmp_path, "eat_front", move)) == 1
    lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    moved = {key for key in load_file(golden_dir / "eat_front.safetensors") if not key.startswith("waveform")}
    assert {key for key in moved if any(line.startswith(key) for line in lines)} == moved
    for case in json.loads((golden_dir / "eat_front.json").read_text())["masks"]:
        folder = tmp_path / case

        def count(spec: dict[str, Any], _: dict[str, Tensor], case: str = case) -> None:
            spec["masks"][case]["masked"] += 1

        folder.mkdir()
        assert main(copy_case(golden_dir, folder, "eat_front", count)) == 1
        failed = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
        assert failed
        assert all(f"mask/{case}" in line or f"masked/{case}" in line for line in failed)


def test_script_fails_where_nothing_ran(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_script(tmp_path)
    assert done.returncode == 1
    assert "no case ran" in done.stdout


def test_script_fails_where_a_loss_term_is_missing(
    run_script: Callable[..., subprocess.CompletedProcess[str]], golden_dir: Path, tmp_path: Path
) -> None:
    done = run_script(copy_case(golden_dir, tmp_path, "image_base", lambda spec, _: spec["losses"].pop("cls")))
    assert done.returncode == 1
    assert "loss terms" in done.stdout


@pytest.mark.parametrize("broken", ["pred", "parameters"])
def test_script_fails_on_a_broken_golden_case(
    repo: Path,
    golden_dir: Path,
    tmp_path: Path,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def edit(spec: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if broken == "pred":
            tensors["pred"][17, 3] += 1e-3
        else:
            swap("student/blocks.0.norm1.weight", "student/blocks.0.norm2.weight")(spec, tensors)

    folder = copy_case(golden_dir, tmp_path, "image_base", edit)
    monkeypatch.setattr(sys, "argv", ["check_parity.py", str(folder)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(repo / "scripts" / "check_parity.py"), run_name="__main__")
    assert done.value.code == 1
    failed = {line.split()[1] for line in capsys.readouterr().out.splitlines() if "FAILED" in line}
    assert failed == {"pred"} if broken == "pred" else {"pred", "loss/regression", "trajectory/0"} <= failed


def test_main_fails_where_no_case_is_ours(main: Callable[..., int], golden_dir: Path, tmp_path: Path) -> None:
    copy_case(golden_dir, tmp_path, "image_base", lambda spec, _: spec.update(name="base_cooking"))
    assert main(tmp_path) == 1
    assert main(golden_dir, "--case", "no_such_case") == 1


def set_loss(term: str, factor: float) -> Edit:
    return lambda spec, _: spec["losses"].update({term: spec["losses"][term] * factor})


IMAGE = "modality_encoders.IMAGE."


def set_item(key: str, index: int, value: float) -> Edit:
    return lambda spec, _: spec[key].__setitem__(index, value)


POSITIONS = f"student/{IMAGE}fixed_positional_encoder.positions"

# What is broken -> how, and a quantity that must then be out of tolerance.
BROKEN: dict[str, tuple[Edit, str]] = {
    "teacher_layer": (scale("teacher_layer/1", 1.001), "teacher_layer/1"),
    "target": (scale("target", 1.001), "target"),
    "target_masked": (scale("target_masked", 1.001), "target_masked"),
    "pred": (scale("pred", 1.001), "pred"),
    "gradient": (scale("grad/blocks.1.attn.proj.bias", 1.001), "grad/student.trunk.blocks.1.attn.proj.bias"),
    "gradient_missing": (lambda _, t: t.pop("grad/blocks.0.norm1.bias"), "gradients"),
    "gradient_transposed": (
        lambda _, t: t.update({"grad/blocks.0.attn.proj.weight": t["grad/blocks.0.attn.proj.weight"].T.contiguous()}),
        "grad/student.trunk.blocks.0.attn.proj.weight",
    ),
    "teacher_after": (
        scale("teacher_after/blocks.2.norm2.weight", 1.001),
        "teacher_after/teacher.trunk.blocks.2.norm2.weight",
    ),
    "features_after": (scale("features_after", 1.001), "features_after"),
    "mask": (lambda _, t: t.update(mask=t["mask"].roll(1, 1)), "pred"),
    "mask_rows": (lambda _, t: t.update(mask=t["mask"].roll(1, 0)), "target_masked"),
    "nan": (lambda _, t: t["target"].fill_(math.nan), "target"),
    "loss_value": (set_loss("cls", 1.001), "loss/cls"),
    "loss_term_missing": (lambda spec, _: spec["losses"].pop("cls"), "loss"),
    "loss_term_added": (lambda spec, _: spec["losses"].update(other=0.0), "loss"),
    "sample_size": (lambda spec, _: spec.update(sample_size=spec["sample_size"] + 1), "sample_size"),
    "masked_pct": (lambda spec, _: spec.update(masked_pct=0.8), "masked_fraction"),
    "target_var": (lambda spec, _: spec.update(target_var=spec["target_var"] * 1.001), "target_std"),
    "pred_var": (lambda spec, _: spec.update(pred_var=spec["pred_var"] * 1.001), "pred_std"),
    "trajectory": (set_item("trajectory", 1, 1.0), "trajectory/1"),
    "ema_decay": (set_item("ema_decay_after_step", 0, 0.9), "ema_decay/0"),
    "positions": (lambda _, t: t.update({POSITIONS: t[POSITIONS].roll(8, 2)}), "positions"),
    "norms_swapped": (swap("student/blocks.0.norm1.weight", "student/blocks.0.norm2.weight"), "pred"),
    "teacher_blocks_swapped": (swap("teacher/blocks.1.mlp.fc2.bias", "teacher/blocks.2.mlp.fc2.bias"), "target"),
    "convolutions_swapped": (
        swap(f"student/{IMAGE}decoder.blocks.1.0.bias", f"student/{IMAGE}decoder.blocks.2.0.bias"),
        "pred",
    ),
    "top_k": (lambda spec, _: spec["overrides"].update(average_top_k_layers=3), "target"),
    "beta": (lambda spec, _: spec["overrides"].update(loss_beta=0.5), "loss/regression"),
    "cls_weight": (lambda spec, _: spec["overrides"].update(cls_loss=0.02), "loss/cls"),
    "num_heads": (lambda spec, _: spec["overrides"].update(num_heads=2), "teacher_layer/0"),
    "norm_of_layers": (lambda spec, _: spec["overrides"].update(layer_norm_target_layer=True), "target"),
}


@pytest.fixture(scope="module")
def small_case(oracle: ModuleType) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Two training steps of a tiny model."""
    return golden_case(oracle, oracle.Options(), 2, 0, 1e-3, 2, "base_images_only_task")


def write_edited(folder: Path, case: tuple[dict[str, Any], dict[str, Tensor]], edit: Edit) -> Path:
    spec, tensors = copy.deepcopy(case)
    edit(spec, tensors)
    write_case(folder, "case", spec, tensors)
    return folder


def test_main_accepts_the_case_that_is_broken_below(
    main: Callable[..., int], small_case: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    assert main(write_edited(tmp_path, small_case, lambda _, __: None)) == 0


@pytest.mark.parametrize("broken", [*BROKEN])
def test_main_fails_on_a_broken_case(
    main: Callable[..., int],
    small_case: tuple[dict[str, Any], dict[str, Tensor]],
    tmp_path: Path,
    broken: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit, quantity = BROKEN[broken]
    assert main(write_edited(tmp_path, small_case, edit)) == 1
    assert quantity in {line.split()[1] for line in capsys.readouterr().out.splitlines() if "FAILED" in line}


@pytest.mark.parametrize(
    "key",
    [
        f"student/{IMAGE}extra_tokens",
        "student/blocks.2.attn.qkv.bias",
        "teacher/blocks.0.norm1.weight",
        "target",
        "features_after",
        "teacher_layer/0",
    ],
)
def test_a_missing_tensor_is_an_error(
    main: Callable[..., int], small_case: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path, key: str
) -> None:
    folder = write_edited(tmp_path, small_case, lambda _, t: t.pop(key))
    with pytest.raises((KeyError, RuntimeError)):
        main(folder)


def test_a_missing_trained_teacher_is_noticed(
    main: Callable[..., int], small_case: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    def edit(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for key in [k for k in tensors if k.startswith("teacher_after/")]:
            del tensors[key]

    assert main(write_edited(tmp_path, small_case, edit)) == 1


def test_relative_error_is_never_small_by_accident(check_parity: ModuleType) -> None:
    error = check_parity.relative_error
    assert error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) == 0
    assert error(torch.tensor([1.0, 2.2]), torch.tensor([1.0, 2.0])) == pytest.approx(0.1)
    assert error(torch.zeros(2), torch.tensor([0.0, 2.0])) == 1
    assert error(torch.ones(2, 1), torch.ones(1, 2)) == math.inf
    assert error(torch.ones(1), torch.ones(())) == math.inf
    assert not error(torch.tensor(math.nan), torch.tensor(1.0)) <= 1
    assert not error(torch.tensor(1.0), torch.tensor(math.nan)) <= 1
    assert not error(torch.tensor(math.inf), torch.tensor(math.inf)) <= 1


def test_merge_overlays_nested_values_and_leaves_the_base_alone(check_parity: ModuleType) -> None:
    base = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert check_parity.merge(base, {"b": {"d": {"e": 4}}, "f": 5}) == {"a": 1, "b": {"c": 2, "d": {"e": 4}}, "f": 5}
    assert base == {"a": 1, "b": {"c": 2, "d": {"e": 3}}}


def test_recipes_are_those_released(check_parity: ModuleType) -> None:
    def recipe(name: str) -> tuple[Any, ...]:
        cfg = check_parity.merge(*check_parity.RECIPES[name])
        image = cfg["modalities"]["image"]
        decoder = image["decoder"]
        return (
            image["prenet_depth"], cfg["depth"], cfg["embed_dim"], cfg["num_heads"], cfg["average_top_k_layers"],
            cfg["clone_batch"], cfg["ema_decay"], cfg["ema_end_decay"], cfg["ema_anneal_end_step"], cfg["cls_loss"],
            decoder["decoder_layers"], decoder["decoder_kernel"], decoder["decoder_groups"], decoder["decoder_dim"],
            image["patch_size"],
        )  # fmt: skip

    assert recipe("base_images_only_task") == (
        2, 10, 768, 12, 10, 16, 0.9998, 0.99999, 100_000, 0.01, 6, 3, 16, 768, 16
    )  # fmt: skip
    assert recipe("large_images_only_task") == (
        0, 24, 1024, 16, 18, 16, 0.9998, 0.99999, 150_000, 0.01, 3, 5, 16, 1024, 16
    )  # fmt: skip
    assert recipe("huge_images14_only_task") == (
        0, 32, 1280, 16, 24, 16, 0.9998, 1.0, 300_000, 0.01, 3, 5, 16, 1024, 14
    )  # fmt: skip


UNSEEN: dict[str, tuple[dict[str, Any], int, int, str]] = {
    "five_masks": (
        {"input_size": 24, "patch_size": 4, "in_chans": 3, "embed_dim": 40, "num_heads": 5, "mlp_hidden": 160,
         "prenet_depth": 2, "num_masks": 5, "decoder_dim": 24, "decoder_groups": 4, "decoder_layers": 2},
        3, 3, "base_images_only_task",
    ),
    "large_no_prenet": (
        {"prenet_depth": 0, "decoder_kernel": 5, "decoder_layers": 1, "decoder_dim": 16, "num_masks": 3,
         "target_norms": ("instance",), "layer_norms": ("layer",), "loss_scale": 1.0},
        2, 5, "large_images_only_task",
    ),
    "both_norms_no_prefix": (
        {"num_extra_tokens": 0, "cls_loss": 0.0, "target_norms": ("layer", "instance"),
         "layer_norms": ("instance", "layer"), "loss_beta": 0.7, "average_top_k_layers": 3},
        1, 5, "huge_images14_only_task",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSEEN)
def test_script_handles_cases_it_has_never_seen(
    main: Callable[..., int], oracle: ModuleType, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, batch_size, num_steps, recipe = UNSEEN[name]
    spec, tensors = golden_case(oracle, oracle.Options(**options), batch_size, 3, 1e-3, num_steps, recipe)
    write_case(tmp_path, name, spec, tensors)
    assert main(tmp_path) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert f"trajectory/{num_steps - 1}" in out
    assert ("loss/cls" in out) == bool(options.get("cls_loss", 0.01))


def test_a_case_without_teacher_starts_it_from_the_student(
    main: Callable[..., int], oracle: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = golden_case(oracle, oracle.Options(), 1, 4, 1e-3, 2, "base_images_only_task", teacher_is_student=True)

    def edit(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for key in [k for k in tensors if k.startswith("teacher/")]:
            del tensors[key]

    assert main(write_edited(tmp_path, case, edit)) == 0, capsys.readouterr().out
