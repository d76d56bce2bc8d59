"""The authors' checkpoint files: what is in them, fine-tuned ones, and that no file executes anything."""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from d2v.interop.build import build, load_exactly
from d2v.interop.checkpoints import load_encoder, open_checkpoint
from d2v.interop.fairseq.files import FairseqCheckpoint, save_fairseq
from d2v.models.mae import MaskedAutoencoder
from d2v.types import Batch

MODALITIES = {"image": "image", "audio": "speech", "text": "text"}


@pytest.fixture
def files(golden_dir: Path) -> Path:
    return golden_dir / "checkpoints"


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize(("name", "modality"), MODALITIES.items())
def test_a_file_gives_the_features_that_the_authors_code_gives(files: Path, name: str, modality: str) -> None:
    expected = load_file(files / f"{name}.expected.safetensors")
    encoder = load_encoder(files / f"{name}.pt")
    inputs = expected["source"]
    with torch.no_grad():
        out = encoder(Batch(modality, inputs, torch.arange(len(inputs))))
    torch.testing.assert_close(out.x, expected["features"], rtol=1e-5, atol=2e-5)
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())


def test_another_algorithm_starts_from_the_encoder_of_a_file(files: Path) -> None:
    """An autoencoder has no place for the file's teacher and decoder."""
    path = files / next(f"{name}.pt" for name, modality in MODALITIES.items() if modality == "image")
    expected = load_encoder(path)
    model = MaskedAutoencoder(load_encoder(path), {"image": nn.Identity()})
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.zero_()
    open_checkpoint(path).start(model)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.student.state_dict().items())


@pytest.mark.parametrize("name", MODALITIES)
def test_pretraining_goes_on_from_a_file_whole(files: Path, name: str) -> None:
    """Student, teacher and decoder; what the teacher does not average is the student's."""
    checkpoint = FairseqCheckpoint.load(files / f"{name}.pt")
    model = build(checkpoint.model_node())
    open_checkpoint(files / f"{name}.pt").start(model)
    stored = content_of(files / f"{name}.pt")["model"]
    decoder = next(v for k, v in stored.items() if "decoder.blocks.0.0.weight" in k)
    assert torch.equal(next(iter(model.decoders.values())).convs[0].weight, decoder)
    student, teacher = model.student.state_dict(), model.teacher.state_dict()
    averaged = {key for key in teacher if model.is_averaged(key) and not key.endswith("positions")}
    assert any(not torch.equal(student[key], teacher[key]) for key in averaged)
    assert all(torch.equal(student[key], teacher[key]) for key in teacher.keys() - averaged)


def test_the_teacher_on_request(files: Path) -> None:
    student, teacher = (load_encoder(files / "image.pt", network) for network in ("student", "teacher"))
    stored = content_of(files / "image.pt")["model"]
    key = "blocks.3.mlp.fc2.weight"
    assert torch.equal(student.state_dict()[f"trunk.{key}"], stored[key])
    assert torch.equal(teacher.state_dict()[f"trunk.{key}"], stored["_ema"][key].float())
    assert not torch.equal(student.state_dict()[f"trunk.{key}"], teacher.state_dict()[f"trunk.{key}"])


def test_a_file_without_a_teacher_says_so(files: Path, tmp_path: Path) -> None:
    content = content_of(files / "text.pt")
    del content["model"]["_ema"]
    path = saved(tmp_path / "x.pt", content)
    assert load_encoder(path)
    with pytest.raises(ValueError, match="holds no teacher"):
        load_encoder(path, "teacher")


@pytest.mark.parametrize("name", MODALITIES)
def test_written_and_read_again_nothing_has_changed(files: Path, tmp_path: Path, name: str) -> None:
    first = FairseqCheckpoint.load(files / f"{name}.pt")
    node = first.model_node()
    model = build(node)
    load_exactly(model, first.model_state())
    again = FairseqCheckpoint.load(save_fairseq(model, node, tmp_path / "a" / "x.pt", first.task))
    assert again.model_node() == node
    theirs, ours = content_of(files / f"{name}.pt")["model"], content_of(again.path)["model"]
    assert theirs.keys() == ours.keys()
    assert theirs["_ema"].keys() == ours["_ema"].keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs if key != "_ema")
    assert all(torch.equal(theirs["_ema"][key].float(), ours["_ema"][key]) for key in theirs["_ema"])
    if "sample_rate" in first.task:
        assert again.task == {"sample_rate": first.task["sample_rate"]}


def rename(content: dict[str, Any], old: str, new: str) -> None:
    content["model"][new] = content["model"].pop(old)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["model"].pop("blocks.0.norm1.bias"), r"missing trunk\.blocks\.0\.norm1\.bias"),
        (lambda c: rename(c, "blocks.0.norm1.bias", "blocks.0.norm7.bias"), r"blocks\.0\.norm7\.bias"),
        (
            lambda c: c["model"].update({"blocks.0.mlp.fc1.bias": torch.zeros(3)}),
            r"blocks\.0\.mlp\.fc1\.bias has shape \(3,\), the model \(192,\)",
        ),
        (lambda c: c["cfg"]["model"].pop("num_heads"), "lacks 'num_heads'"),
        (lambda c: c["cfg"]["model"].update(depth=2), r"left over trunk\.blocks\.2\."),
        (lambda c: c["model"].clear(), "not the parameters of a data2vec model"),
    ],
)
def test_what_does_not_fit_is_named(files: Path, tmp_path: Path, edit: Any, message: str) -> None:
    content = content_of(files / "text.pt")
    edit(content)
    path = saved(tmp_path / "broken.pt", content)
    with pytest.raises(ValueError, match=message):
        load_encoder(path)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["cfg", "model", "extra_state"])
def test_a_malicious_file_executes_nothing(files: Path, tmp_path: Path, legacy: bool, place: str) -> None:
    proof = tmp_path / "executed"
    content = content_of(files / "text.pt")
    content[place] = {**content[place], "x": Malicious(proof)}
    path = saved(tmp_path / "malicious.pt", content, _use_new_zipfile_serialization=not legacy)
    for load in (open_checkpoint, load_encoder, FairseqCheckpoint.load):
        with pytest.raises(
            ValueError, match=r"malicious\.pt: refused, because it holds more than tensors and plain values"
        ):
            load(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)  # the file is as bad as it looks
    assert proof.exists()


def test_a_bare_pickle_executes_nothing(tmp_path: Path) -> None:
    proof, path = tmp_path / "executed", tmp_path / "bare.pt"
    path.write_bytes(pickle.dumps({"model": {}, "cfg": Malicious(proof)}))
    with pytest.raises(ValueError, match=r"bare\.pt"):
        load_encoder(path)
    assert not proof.exists()


def test_files_from_before_zip_archives_and_with_arguments_are_read(files: Path, tmp_path: Path) -> None:
    content = content_of(files / "image.pt")
    path = saved(tmp_path / "old.pt", content, _use_new_zipfile_serialization=False)
    assert_equal(load_encoder(path).state_dict(), load_encoder(files / "image.pt").state_dict())
    content["args"], content["cfg"] = argparse.Namespace(**content["cfg"]["model"]), None
    path = saved(tmp_path / "older.pt", content)
    assert_equal(load_encoder(path).state_dict(), load_encoder(files / "image.pt").state_dict())


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


FINETUNED: dict[str, tuple[str, dict[str, tuple[int, ...]], str]] = {
    # name: what its encoder's names begin with, its head, where its configuration is
    "image": (
        "model.",
        {"fc_norm.weight": (48,), "fc_norm.bias": (48,), "head.weight": (10, 48), "head.bias": (10,)},
        "pretrained_model_args",
    ),
    "audio": (
        "w2v_encoder.w2v_model.",
        {"w2v_encoder.proj.weight": (32, 48), "w2v_encoder.proj.bias": (32,)},
        "w2v_args",
    ),
    "text": (
        "model.",
        {
            "classification_heads.sentence_classification_head.dense.weight": (48, 48),
            "classification_heads.sentence_classification_head.dense.bias": (48,),
            "classification_heads.sentence_classification_head.out_proj.weight": (2, 48),
            "classification_heads.sentence_classification_head.out_proj.bias": (2,),
        },
        "pretrained_model_args",
    ),
}


@pytest.mark.parametrize("name", FINETUNED)
def test_a_fine_tuned_file_gives_encoder_and_head(files: Path, tmp_path: Path, name: str) -> None:
    prefix, head, place = FINETUNED[name]
    content = content_of(files / f"{name}.pt")
    own = {k: v for k, v in content["model"].items() if isinstance(v, Tensor) and ".decoder." not in k}
    head_state = {key: torch.randn(shape) for key, shape in head.items()}
    content["model"] = {f"{prefix}{key}": value for key, value in own.items()} | head_state
    content["cfg"] = {"model": {"_name": "finetuned", place: {"model": content["cfg"]["model"]}}, "task": {}}
    path = saved(tmp_path / "finetuned.pt", content)
    opened = open_checkpoint(path)
    assert_equal(opened.encoder.state_dict(), load_encoder(files / f"{name}.pt").state_dict())
    built = opened.head
    assert built is not None
    last = next(value for key, value in head_state.items() if key.endswith(("head.weight", "proj.weight")))
    assert torch.equal(built.state_dict()["proj.weight"], last)
    model = build(FairseqCheckpoint.load(files / f"{name}.pt").model_node())
    opened.start(model)  # the encoder for student and teacher, where there is no decoder
    assert_equal(model.student.state_dict(), opened.encoder.state_dict())
    assert_equal(model.teacher.state_dict(), opened.encoder.state_dict())


@pytest.mark.slow
def test_reading_needs_no_fairseq_and_little_memory(tmp_path: Path) -> None:
    """Far less than twice the file, whatever lies beside the model in it."""
    program = f"""
import resource, sys, torch
from d2v.interop.checkpoints import load_encoder
from d2v.interop.fairseq.files import save_fairseq
from d2v.interop.build import build
path = {str(tmp_path / "large.pt")!r}
if sys.argv[1] == "write":
    size = dict(embed_dim=512, depth=4, num_heads=8)
    frontend = {{"_target_": "d2v.nn.frontends.image.ImageFrontend", "embed_dim": 512, "img_size": 32, "patch_size": 8}}
    encoder = {{"_target_": "d2v.nn.encoder.transformer_encoder", "frontends": {{"image": frontend}}, **size}}
    decoder = {{"_target_": "d2v.nn.decoders.ConvDecoder2d", "embed_dim": 512, "depth": 1}}
    node = {{"_target_": "d2v.models.data2vec2.Data2Vec2", "encoder": encoder, "decoders": {{"image": decoder}},
            "average_top_k_layers": 2, "teacher_scope": "encoder"}}
    save_fairseq(build(node), node, path, {{}})
else:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load_encoder(path)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, "fairseq" in sys.modules)
"""
    for action in ("write", "read"):
        done = subprocess.run(
            [sys.executable, "-c", program, action], capture_output=True, text=True, check=True, timeout=120
        )
    used, fairseq = done.stdout.split()
    size = (tmp_path / "large.pt").stat().st_size
    assert size > 90e6
    assert int(used) < 2 * size
    assert fairseq == "False"
