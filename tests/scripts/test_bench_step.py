"""The benchmark of a training step: its operations agree with a count on paper, and it runs from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SMALL = ["model.encoder.embed_dim=64", "model.encoder.num_heads=4", "model.decoders.image.groups=8"]
SMALL_2 = [*SMALL, "model.encoder.depth=2", "model.encoder.prenet_depth=1", "model.average_top_k_layers=2"]


def _backward(counter: FlopCounterMode, output: torch.Tensor) -> int:
    with counter:
        output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", ["none", "fixed", "learned"])
def test_attention_is_counted_whichever_kernel_computes_it(
    bench_step: ModuleType, dtype: torch.dtype, bias: str
) -> None:
    query, key, value = (torch.randn(2, 4, 10, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = None if bias == "none" else torch.randn(1, 4, 10, 10, dtype=dtype, requires_grad=bias == "learned")
    with bench_step.flop_counter() as counter:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    forward = 2 * (2 * 4) * (10 * 10 * 8) * 2  # two products of a multiplication and an addition, for every head
    assert counter.get_total_flops() == forward
    assert _backward(bench_step.flop_counter(), output) == 2 * forward


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("of_inputs", [False, True])
def test_a_convolutions_gradients_cost_as_much_as_its_output(
    bench_step: ModuleType, groups: int, of_inputs: bool
) -> None:
    conv = nn.Conv2d(16, 32, 3, padding=1, groups=groups)
    inputs = torch.randn(2, 16, 5, 6, requires_grad=of_inputs)
    with bench_step.flop_counter() as counter:
        output = conv(inputs)
    forward = 2 * (2 * 5 * 6) * 32 * (16 // groups) * 3 * 3
    assert counter.get_total_flops() == forward
    assert _backward(bench_step.flop_counter(), output) == (1 + of_inputs) * forward


def _on_paper(run: Any, batch: Any) -> dict[str, float]:
    """FLOPs of data2vec 2.0 for images, from the sizes alone."""
    sizes, cfg = run.shapes(batch), run.cfg.model
    samples, views = len(batch.inputs), len(batch.mask.mask)
    tokens, visible, dim = sizes["tokens"], sizes["visible"], sizes["width"]
    frontend, decoder = cfg.encoder.frontends.image, cfg.decoders.image
    hidden = int(cfg.encoder.mlp_ratio * dim)

    def blocks(rows: int, length: int) -> float:
        linear = 2 * rows * length * (dim * 3 * dim + dim * dim + 2 * dim * hidden)
        attention = 2 * 2 * rows * length * length * dim
        return sizes["depth"] * (linear + attention)

    patches = 2 * samples * tokens * dim * frontend.in_chans * frontend.patch_size**2
    wide = decoder.decoder_dim
    convs = sum(
        2 * views * tokens * wide * (fan_in // decoder.groups) * decoder.kernel_size**2
        for fan_in in [dim] + [wide] * (decoder.depth - 1)
    )
    values = frontend.in_chans * frontend.patch_size**2 if cfg.reconstruction else 0
    project = 2 * views * (tokens - visible) * wide * (dim + values)
    student = blocks(views, 1 + visible)
    return {
        "teacher": patches + blocks(samples, 1 + tokens),
        "student": patches + student,
        "decoder": convs + project,
        "backward": patches + 2 * (student + convs + project),  # pixels need no gradient
    }


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("size", [28, 56])
def test_operations_agree_with_a_count_on_paper(bench_step: ModuleType, precision: str, size: int) -> None:
    run = bench_step.Run(bench_step.Case("image_tiny", precision, batch=3, size=size, overrides=SMALL_2))
    batch = run.batch(0)
    counted, expected = bench_step.count_flops(run, batch), _on_paper(run, batch)
    assert counted.keys() == expected.keys()
    for stage, flops in expected.items():
        assert counted[stage] == pytest.approx(flops, rel=0.01), stage


def test_image_base_agrees_with_a_count_on_paper(bench_step: ModuleType) -> None:
    fewer = [
        "model.encoder.depth=1",
        "model.encoder.prenet_depth=1",
        "model.average_top_k_layers=1",
        "mask.num_masks=2",
    ]
    run = bench_step.Run(bench_step.Case("image_base", batch=1, overrides=fewer))
    batch = run.batch(0)
    assert (batch.inputs.shape[1:], batch.mask.mask.shape) == ((3, 224, 224), (2, 196))
    assert bench_step.count_flops(run, batch) == pytest.approx(_on_paper(run, batch), rel=0.01)


def test_masks_are_the_recipes_and_new_in_every_step(bench_step: ModuleType) -> None:
    run = bench_step.Run(bench_step.Case("image_tiny", batch=2, overrides=SMALL_2))
    first, again, second = (run.batch(epoch).mask for epoch in (0, 0, 1))
    assert first.num_masks == run.cfg.mask.num_masks
    assert first.ids_keep.shape[1] == run.mask.num_visible(first.mask.shape[1])
    assert torch.equal(first.mask, again.mask)
    assert not torch.equal(first.mask, second.mask)


def test_a_step_trains_student_and_teacher(bench_step: ModuleType) -> None:
    run = bench_step.Run(bench_step.Case("image_tiny", batch=2, overrides=SMALL_2))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    laps = bench_step.Laps()
    run.step(run.batch(0), laps)
    assert [stage for stage, _ in laps.readings] == [
        "student", "teacher", "student", "decoder", "backward", "clipping", "optimizer", "ema", "end",
    ]  # fmt: skip
    after = run.model.state_dict()
    for part in (
        "student.trunk.blocks.0.mlp.fc1.weight",
        "decoders.image.proj.weight",
        "teacher.trunk.blocks.0.mlp.fc1.weight",
    ):
        assert not torch.equal(before[part], after[part]), part
    assert torch.isfinite(run.loss)
    assert "targets" not in vars(run.model)  # hooks are gone


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("speech_tiny", ["model.encoder.embed_dim=64", "model.encoder.num_heads=4"]),
        ("text_tiny", ["model.encoder.embed_dim=64", "model.encoder.num_heads=4", "data.vocab_size=100"]),
        ("v1_image_tiny32", ["model.encoder.embed_dim=64", "model.encoder.num_heads=4"]),
    ],
)
def test_every_modality_and_algorithm_is_measured(
    bench_step: ModuleType, recipe: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_step, "SQUARE", {"cpu": 64})
    size = {"speech_tiny": 1.0, "text_tiny": 32.0}.get(recipe)
    case = bench_step.Case(recipe, "bf16-mixed", batch=2, size=size, overrides=overrides, steps=2)
    result = bench_step.measure(case)
    seconds, flops = result["seconds"], result["flops"]
    stages = ("teacher", "student", "decoder", "backward", "clipping", "optimizer", "ema")
    assert sum(seconds[stage]["values"][0] for stage in stages) == pytest.approx(seconds["step"]["values"][0], rel=0.1)
    assert flops["step"] == sum(count for stage, count in flops.items() if stage != "step")
    assert flops["backward"] > flops["student"] > flops["teacher"] / 2 > 0
    assert result["memory"]["growth"] >= 0
    json.dumps(result)


@pytest.mark.slow
def test_the_command_writes_tables_pictures_and_files(
    bench_step: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    tiny = [
        "step.py",
        "image_tiny",
        *SMALL_2,
        "--batch",
        "2",
        "--steps",
        "1",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr("sys.argv", [*tiny, "--json", str(tmp_path / "step.json")])
    bench_step.main()
    content = json.loads((tmp_path / "step.json").read_text())
    (result,) = content["results"]
    assert content["machine"]["threads"] == 1
    assert result["seconds"]["step"]["median"] > 0
    assert result["memory"]["growth"] > 0
    assert 0 < result["share_of_gemm"]["median"] < 2
    assert "| backward " in capfd.readouterr().out

    plot = tmp_path / "width.png"
    monkeypatch.setattr("sys.argv", [*tiny, "--sweep", "width", "--plot", str(plot), "--values", "32", "64"])
    bench_step.main()
    assert plot.stat().st_size > 1000
    assert "| width " in capfd.readouterr().out


@pytest.mark.parametrize("axis", ["masks", "batch", "width", "tokens"])
@pytest.mark.parametrize("recipe", ["image_base", "speech_tiny", "v1_text_base"])
def test_a_sweep_changes_one_size(bench_step: ModuleType, recipe: str, axis: str) -> None:
    case = bench_step.Case(recipe)
    values = bench_step.sweep_values(case, axis)
    assert len(values) > 2
    for value in values:
        changed = bench_step.at(case, axis, value)
        cfg = bench_step.compose_recipe(recipe, [*changed.overrides, *bench_step.size_overrides(changed)])
        encoder = cfg.model.encoder
        if axis == "width":
            own = bench_step.compose_recipe(recipe).model.encoder
            assert encoder.embed_dim == value
            assert encoder.embed_dim / encoder.num_heads == own.embed_dim / own.num_heads
        elif axis == "masks":
            assert cfg.mask.num_masks == value
        else:
            assert {"batch": changed.batch, "tokens": changed.size}[axis] == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["image_tinny"], "no recipe image_tinny: choose from eat_base"),
        (["image_tiny", "--batch", "0"], "--batch 0: at least 1"),
        (["image_tiny", "--sweep", "batch", "--values", "2", "2.5"], "--values 2 2.5: whole numbers"),
        (["image_tiny", "--sweep", "masks", "--values", "2", "2"], "--values 2 2: whole numbers, each of them once"),
        (
            ["image_tiny", "--steps", "1", "trainer.precision=bf16-mixed"],
            "trainer.precision=bf16-mixed: changes nothing",
        ),
        (["image_tiny", "micro_batch_size=1"], "micro_batch_size=1: changes nothing"),
    ],
)
def test_what_cannot_be_measured_is_named(
    bench_step: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["step.py", *words])
    with pytest.raises(SystemExit) as stop:
        bench_step.main()
    assert message in capsys.readouterr().err + str(stop.value)


def test_settings_of_which_nothing_can_be_built_are_named(
    bench_step: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["step.py", "image_tiny", "--steps", "1", "model.encoder.embed_dim=30"])
    with pytest.raises(SystemExit) as stop:
        bench_step.main()
    assert stop.value.code == 1
    error = capfd.readouterr().err
    assert "model.encoder.embed_dim=30" in error
    assert "Traceback" not in error


def test_activation_checkpointing_is_measured(bench_step: ModuleType) -> None:
    overrides = [*SMALL_2, "activation_checkpointing=true"]
    run = bench_step.Run(bench_step.Case("image_tiny", batch=2, overrides=overrides))
    assert all(block.checkpointing for block in run.model.student.trunk.blocks)
