"""Agreement with the authors' data2vec 1.0, and that the script which says so can also say no."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from edited_cases import GOLDEN_OF_1, Edit, copy_case, gradients, scale, swap, trained_teacher
from torch import Tensor


@pytest.mark.parametrize("name", GOLDEN_OF_1)
def test_every_tensor_and_number_of_a_1_0_case_can_fail(
    check_parity: ModuleType, golden_dir: Path, tmp_path: Path, name: str
) -> None:
    """All that the reference computed is moved a little: what is checked against it must say so, one by one."""

    def edit(spec: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for key in [k for k in tensors if k.startswith(("grad/", "teacher_after/"))]:
            if tensors[key].is_floating_point():
                tensors[key] += 1e-3 * tensors[key].abs().max() + 1e-6
        for key in ("trajectory", "ema_decay_after_step"):
            spec[key] = [value * 1.001 for value in spec[key]]
        spec["loss"] *= 1.001

    case = check_parity.Case.load(copy_case(golden_dir, tmp_path, name, edit) / f"{name}.json")
    checks = list(check_parity.check_case(case))
    assert len(checks) == len({c[0] for c in checks})
    expected = {"loss"} | {f"{key}/{i}" for key in ("trajectory", "ema_decay") for i in range(5)}
    assert {c[0] for c in checks if not c[1] <= c[2]} == expected | gradients(case) | trained_teacher(case)


def overrides(**values: Any) -> Edit:
    return lambda spec, _: spec["overrides"].update(values)


# Case, what is broken -> how, and a quantity that must then be out of tolerance.
BROKEN_1: dict[tuple[str, str], tuple[Edit, str]] = {
    ("v1_image", "mask"): (lambda _, t: t.update(mask=t["mask"].roll(1, 1)), "loss"),
    ("v1_image", "mask_token"): (lambda _, t: t.update({"student/mask_emb": t["student/mask_emb"].roll(1, 2)}), "loss"),
    ("v1_image", "relative_positions"): (scale("student/encoder.rel_pos_bias.relative_position_bias_table", 9), "loss"),
    ("v1_image", "layer_scale"): (swap("student/encoder.blocks.1.gamma_1", "student/encoder.blocks.1.gamma_2"), "loss"),
    ("v1_image", "queries_for_values"): (
        swap("student/encoder.blocks.0.attn.q_bias", "student/encoder.blocks.0.attn.v_bias"),
        "grad/student.trunk.blocks.0.attn.qkv.bias",
    ),
    ("v1_image", "end_of_block"): (overrides(end_of_block_targets=False), "loss"),
    ("v1_image", "target_norm"): (overrides(layer_norm_targets=False), "loss"),
    ("v1_image", "gradient_missing"): (lambda _, t: t.pop("grad/mask_emb"), "gradients the reference lacks: 1"),
    ("v1_image", "teacher"): (scale("teacher/blocks.2.gamma_1", 1.5), "loss"),
    ("v1_audio", "mask"): (lambda _, t: t.update(mask=t["mask"].roll(1, 1)), "loss"),
    ("v1_audio", "padding"): (lambda _, t: t.pop("padding_mask"), "loss"),
    ("v1_audio", "queries_for_values"): (
        swap(
            "student/encoder.layers.0.self_attn.q_proj.weight",
            "student/encoder.layers.0.self_attn.v_proj.weight",
        ),
        "loss",
    ),
    ("v1_audio", "beta"): (overrides(loss_beta=1.0), "loss"),
    ("v1_audio", "ema_decay"): (overrides(ema_end_decay=0.98), "ema_decay/0"),
    ("v1_text", "source"): (lambda _, t: t["source"][0].fill_(7), "source"),
    ("v1_text", "mask_id"): (lambda spec, _: spec.update(mask_id=98), "source"),
    ("v1_text", "target_tokens"): (
        lambda _, t: t["target_tokens"].copy_(torch.where(t["mask"].bool(), 9, t["target_tokens"])),
        "loss",
    ),
    ("v1_text", "head"): (scale("student/encoder.regression_head.2.weight", 1.01), "loss"),
    ("v1_text", "loss_scale"): (lambda spec, _: spec.update(loss_scale=-1), "loss"),
    ("v1_text", "top_k"): (lambda spec, _: spec.update(average_top_k_layers=1), "loss"),
    ("v1_text", "learning_rate"): (lambda spec, _: spec.update(sgd_lr=spec["sgd_lr"] * 1.1), "trajectory/1"),
    ("v1_text", "no_teacher_after"): (
        lambda _, t: [t.pop(k) for k in [*t] if k.startswith("teacher_after/")],
        "teacher_after (none given)",
    ),
}


@pytest.mark.parametrize(("name", "broken"), BROKEN_1)
def test_a_broken_1_0_case_is_noticed(
    check_parity: ModuleType, golden_dir: Path, tmp_path: Path, name: str, broken: str
) -> None:
    edit, quantity = BROKEN_1[name, broken]
    case = check_parity.Case.load(copy_case(golden_dir, tmp_path, name, edit) / f"{name}.json")
    assert quantity in (c[0] for c in check_parity.check_case(case) if not c[1] <= c[2])


def test_main_fails_on_a_broken_1_0_case(
    main: Callable[..., int], golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_case(golden_dir, tmp_path, "v1_text", lambda spec, _: spec.update(loss=spec["loss"] * 1.001))
    assert main(tmp_path) == 1
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if "FAILED" in line] == ["loss"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("v1_image", "student/cls_emb"),
        ("v1_image", "student/encoder.blocks.0.attn.q_bias"),
        ("v1_image", "teacher/rel_pos_bias.relative_position_bias_table"),
        ("v1_audio", "student/encoder.layers.2.self_attn.k_proj.weight"),
        ("v1_audio", "teacher/layers.0.fc1.bias"),
        ("v1_text", "student/encoder.regression_head.0.bias"),
        ("v1_text", "mask"),
    ],
)
def test_a_missing_tensor_of_a_1_0_case_is_an_error(
    check_parity: ModuleType, golden_dir: Path, tmp_path: Path, name: str, key: str
) -> None:
    folder = copy_case(golden_dir, tmp_path, name, lambda _, t: t.pop(key))
    with pytest.raises(KeyError):
        check_parity.Case.load(folder / f"{name}.json")
