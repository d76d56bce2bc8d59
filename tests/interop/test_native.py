"""Our own files: what loads, bit for bit, and what is refused without executing anything."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from d2v.interop import exports
from d2v.interop.build import build, load_exactly
from d2v.interop.checkpoints import load_encoder, open_checkpoint
from d2v.interop.exports import save_encoder
from d2v.interop.native import RunCheckpoint, resolve_checkpoint
from d2v.models.data2vec2 import Data2Vec2
from d2v.nn.encoder import Encoder
from d2v.runs.exports import CARD, SUMS
from d2v.types import Batch

MakeBatch = Callable[..., Batch]

ENCODER_NODE: dict[str, Any] = {
    "_target_": "d2v.nn.encoder.transformer_encoder",
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 4,
    "prenet_depth": 1,
    "frontends": {
        "image": {
            "_target_": "d2v.nn.frontends.image.ImageFrontend",
            "embed_dim": 16,
            "img_size": 12,
            "patch_size": 3,
            "in_chans": 2,
        }
    },
}
MODEL_NODE: dict[str, Any] = {
    "_target_": "d2v.models.data2vec2.Data2Vec2",
    "encoder": ENCODER_NODE,
    "decoders": {
        "image": {"_target_": "d2v.nn.decoders.ConvDecoder2d", "embed_dim": 16, "decoder_dim": 8, "groups": 2}
    },
    "average_top_k_layers": 2,
    "layer_norms": ["instance"],
}


def make_model(seed: int = 0) -> Data2Vec2:
    torch.manual_seed(seed)
    model = build(MODEL_NODE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def write_checkpoint(path: Path, model: Data2Vec2, step: int = 7, **changes: Any) -> Path:
    """The part of a training checkpoint that readers rely on."""
    content = {
        "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()},
        "global_step": step,
        "d2v": {"version": "0", "config": {"model": MODEL_NODE, "inputs": {}, "seed": 3}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: v for k, v in content.items() if v is not None}, path)
    return path


def assert_same(module: nn.Module, other: nn.Module) -> None:
    for (name, ours), (theirs_name, theirs) in zip(
        module.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert name == theirs_name
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), name


# build


def test_build_makes_nested_parts_with_their_arguments() -> None:
    model = build(MODEL_NODE)
    assert isinstance(model, Data2Vec2)
    assert isinstance(model.student, Encoder)
    assert model.student.frontend("image").num_prefix_tokens == 1
    assert model.recipes["image"].layer_norms == ("instance",)
    assert len(model.student.prenets["image"].blocks) == 1


def test_build_leaves_plain_values_alone() -> None:
    node = {"a": 1, "b": [1, (2, "x")], "c": {"d": None}}
    assert build(node) == {"a": 1, "b": [1, [2, "x"]], "c": {"d": None}}
    assert "_target_" in MODEL_NODE["encoder"]  # and does not consume what it reads


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "d2vx.nn.encoder.Encoder",
        "torch.nn.Linear",
        "print",
        "",
        "d2v",
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_build_refuses_what_is_not_ours(target: str, nested: bool) -> None:
    node: Any = {"_target_": target, "command": "echo"}
    with pytest.raises(ValueError, match=r"refused: a file may name only|give a mapping of names"):
        build({"_target_": "d2v.nn.encoder.transformer_encoder", "frontends": [node]} if nested else node)


@pytest.mark.parametrize("target", ["d2v.interop.native.save_file", "d2v.interop.native.nn.Module"])
def test_build_refuses_other_peoples_callables_that_our_modules_import(target: str, tmp_path: Path) -> None:
    written = tmp_path / "written"
    with pytest.raises(ValueError, match=r"refused: a file may name only|give a mapping of names"):
        build({"_target_": target, "tensors": {}, "filename": str(written)})
    assert not written.exists()


def test_build_refuses_functions(tmp_path: Path) -> None:
    node = {"_target_": "d2v.interop.native.resolve_checkpoint", "path": str(tmp_path / "x")}
    with pytest.raises(ValueError, match=r"refused: a file may name only|give a mapping of names"):
        build(node)


@pytest.mark.parametrize("target", ["d2v.nn.no_such_module.Encoder", "d2v.nn.encoder.NoSuchClass", 3])
def test_build_names_a_target_that_does_not_exist(target: Any) -> None:
    with pytest.raises(ValueError, match=str(target)):
        build({"_target_": target})


# load_exactly


def test_load_exactly_loads() -> None:
    a, b = make_model(0), make_model(1)
    load_exactly(a, b.state_dict())
    assert_same(a, b)


def test_load_exactly_names_every_difference_and_changes_nothing() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    with pytest.raises(ValueError, match="3 differences") as error:
        load_exactly(module, {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)})
    for words in ("missing bias", "left over extra", "weight has shape (2, 4), the model (2, 3)"):
        assert words in str(error.value)
    assert torch.equal(module.weight, before)


def test_load_exactly_shows_ten_differences_and_counts_the_rest() -> None:
    with pytest.raises(ValueError, match="14 differences") as error:
        load_exactly(nn.Linear(3, 2), {f"x{i}": torch.zeros(1) for i in range(12)})
    assert str(error.value).count("left over") + str(error.value).count("missing") == 10
    assert "and 4 more" in str(error.value)


def test_load_exactly_checks_buffers() -> None:
    module = nn.BatchNorm1d(2)
    state = dict(module.state_dict())
    del state["running_mean"]
    with pytest.raises(ValueError, match="missing running_mean"):
        load_exactly(module, state)


# exports


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_an_export_is_bit_equal(tmp_path: Path, make_batch: MakeBatch, network: str) -> None:
    encoder = getattr(make_model(), network)
    folder = save_encoder(
        encoder, {"encoder": ENCODER_NODE, "inputs": {"mean": [0.5]}}, tmp_path / "a" / "b", "# Card\n"
    )
    assert sorted(p.name for p in folder.iterdir()) == sorted([exports.WEIGHTS, exports.CONFIG, CARD, SUMS])
    assert (folder / CARD).read_text() == "# Card\n"
    assert OmegaConf.to_container(OmegaConf.load(folder / exports.CONFIG)) == {
        "encoder": ENCODER_NODE,
        "inputs": {"mean": [0.5]},
    }
    loaded = load_encoder(folder)
    assert_same(loaded, encoder)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    batch = make_batch(2)
    with torch.no_grad():
        assert torch.equal(loaded(batch).x, encoder.eval()(batch).x)
    assert_same(load_encoder(str(folder)), encoder)


def test_exporting_again_replaces_the_weights(tmp_path: Path) -> None:
    config = {"encoder": ENCODER_NODE, "inputs": {}}
    save_encoder(make_model(0).student, config, tmp_path, "one")
    save_encoder(make_model(1).student, config, tmp_path, "two")
    assert_same(load_encoder(tmp_path), make_model(1).student)


def test_an_export_whose_weights_do_not_fit_is_refused(tmp_path: Path) -> None:
    node = {**ENCODER_NODE, "depth": 3}
    save_encoder(make_model().student, {"encoder": node, "inputs": {}}, tmp_path, "")
    with pytest.raises(ValueError, match=r"missing trunk\.blocks\.2\."):
        load_encoder(tmp_path)


def test_an_export_that_names_a_foreign_class_is_refused(tmp_path: Path) -> None:
    config = {"encoder": {"_target_": "os.system", "command": "false"}, "inputs": {}}
    save_encoder(make_model().student, config, tmp_path, "")
    with pytest.raises(ValueError, match=r"os\.system"):
        load_encoder(tmp_path)


def test_damaged_weights_of_an_export_are_a_value_error(tmp_path: Path) -> None:
    save_encoder(make_model().student, {"encoder": ENCODER_NODE, "inputs": {}}, tmp_path, "")
    (tmp_path / exports.WEIGHTS).write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError):
        load_encoder(tmp_path)


def test_an_export_without_the_encoders_configuration_is_a_value_error(tmp_path: Path) -> None:
    save_encoder(make_model().student, {"inputs": {}}, tmp_path, "")
    with pytest.raises(ValueError):
        load_encoder(tmp_path)


# checkpoints


def test_a_checkpoint_gives_back_model_config_and_step(tmp_path: Path) -> None:
    model = make_model()
    checkpoint = RunCheckpoint.load(write_checkpoint(tmp_path / "a.ckpt", model))
    assert checkpoint.step == 7
    assert checkpoint.config == {"model": MODEL_NODE, "inputs": {}, "seed": 3}
    assert_same(checkpoint.build_model(), model)
    assert_same(load_encoder(tmp_path / "a.ckpt"), model.student)
    assert_same(load_encoder(tmp_path / "a.ckpt", "teacher"), model.teacher)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for load in (RunCheckpoint.load, load_encoder):
        with pytest.raises(FileNotFoundError, match=r"checkpoint=.*nothing\.ckpt"):
            load(tmp_path / "nothing.ckpt")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 broken zip", b"\x80\x02}q\x00."])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint=.*garbage\.ckpt"):
        RunCheckpoint.load(path)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "cut.ckpt", make_model())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"checkpoint=.*cut\.ckpt: is damaged"):
        RunCheckpoint.load(path)


@pytest.mark.parametrize("content", [{"model": {"w": torch.zeros(2)}}, [1, 2], torch.zeros(3)])
def test_a_foreign_checkpoint_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="not written by a d2v run"):
        RunCheckpoint.load(tmp_path / "foreign.ckpt")


@pytest.mark.parametrize(
    "changes",
    [{"state_dict": None}, {"global_step": None}, {"d2v": {}}, {"d2v": 1}, {"d2v": {"config": {"model": MODEL_NODE}}}],
)
def test_a_checkpoint_with_parts_missing_is_a_value_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_checkpoint(tmp_path / "parts.ckpt", make_model(), **changes)
    with pytest.raises(ValueError, match="checkpoint="):
        RunCheckpoint.load(path)


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_checkpoint_executes_nothing(tmp_path: Path, legacy: bool) -> None:
    proof, path = tmp_path / "executed", tmp_path / "malicious.ckpt"
    content = {"d2v": {"config": Malicious(proof)}, "state_dict": {}, "global_step": 1}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for load in (RunCheckpoint.load, load_encoder, lambda p: open_checkpoint(p).start(make_model())):
        with pytest.raises(ValueError, match=r"malicious\.ckpt: refused, because it holds more than tensors"):
            load(path)
        assert not proof.exists()
    torch.load(path, weights_only=False)  # the file is as bad as it looks
    assert proof.exists()


def test_a_malicious_pickle_executes_nothing(tmp_path: Path) -> None:
    proof, path = tmp_path / "executed", tmp_path / "plain.ckpt"
    path.write_bytes(pickle.dumps(Malicious(proof)))
    with pytest.raises(ValueError, match=r"plain\.ckpt"):
        RunCheckpoint.load(path)
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists()


def test_a_checkpoint_whose_config_names_a_foreign_class_builds_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    config = {"model": {"_target_": "os.mkdir", "path": str(proof)}, "inputs": {}}
    path = write_checkpoint(tmp_path / "a.ckpt", make_model(), d2v={"config": config})
    with pytest.raises(ValueError, match=r"os\.mkdir"):
        load_encoder(path)
    assert not proof.exists()


# resolve_checkpoint and init_from


def test_a_runs_folder_means_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (900, 1000, 20000):
        write_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}.ckpt", make_model(), step)
    newest = tmp_path / "checkpoints" / "step-00020000.ckpt"
    assert resolve_checkpoint(tmp_path) == newest
    assert resolve_checkpoint(tmp_path / "checkpoints") == newest
    assert resolve_checkpoint(newest) == newest


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    intact = write_checkpoint(tmp_path / "checkpoints" / "step-00000100.ckpt", make_model())
    (tmp_path / "checkpoints" / "step-00000200.ckpt").write_bytes(intact.read_bytes()[:-2000])
    assert resolve_checkpoint(tmp_path) == intact


def test_a_folder_without_anything_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint=.*holds neither"):
        resolve_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint="):
        open_checkpoint(tmp_path).start(make_model())


def test_init_from_a_checkpoint_takes_everything(tmp_path: Path) -> None:
    source, model = make_model(0), make_model(1)
    open_checkpoint(write_checkpoint(tmp_path / "checkpoints" / "step-00000007.ckpt", source)).start(model)
    assert_same(model, source)
    other = make_model(1)
    open_checkpoint(tmp_path).start(other)
    assert_same(other, source)


def test_init_from_an_export_starts_student_and_teacher(tmp_path: Path) -> None:
    source, model = make_model(0), make_model(1)
    decoders = {k: v.clone() for k, v in model.decoders.state_dict().items()}
    open_checkpoint(save_encoder(source.teacher, {"encoder": ENCODER_NODE, "inputs": {}}, tmp_path, "")).start(model)
    assert_same(model.student, source.teacher)
    assert_same(model.teacher, source.teacher)
    assert all(torch.equal(v, decoders[k]) for k, v in model.decoders.state_dict().items())
    assert all(p.requires_grad for p in model.student.parameters())
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_init_from_refuses_what_does_not_fit(tmp_path: Path) -> None:
    source = build({**MODEL_NODE, "encoder": {**ENCODER_NODE, "depth": 3}})
    with pytest.raises(ValueError, match="do not fit the model"):
        open_checkpoint(write_checkpoint(tmp_path / "a.ckpt", source)).start(make_model())
    save_encoder(source.student, {"encoder": ENCODER_NODE, "inputs": {}}, tmp_path / "export", "")
    with pytest.raises(ValueError, match="do not fit the model"):
        open_checkpoint(tmp_path / "export").start(make_model())


def test_saved_weights_are_plain_safetensors(tmp_path: Path) -> None:
    encoder = make_model().student
    save_encoder(encoder, {"encoder": ENCODER_NODE, "inputs": {}}, tmp_path, "")
    state = load_file(tmp_path / exports.WEIGHTS)
    assert state.keys() == encoder.state_dict().keys()
