"""Files that attack their reader, in every format and for every command: refused in words, and nothing was touched.

A canary watches: a file of the user's that must stay as it is, files that must not appear, a variable of the
environment that must not be resolved, functions that must not be called. Tests assert through ``refused`` and through
the canary, which is checked when a test ends.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import hostile as make
import pytest
import torch
from canary import Canary, refused

from d2v.cli.resuming import check_words_of_file
from d2v.interop.build import check_node
from d2v.interop.checkpoints import open_checkpoint


def nodes(canary: Canary) -> dict[str, dict[str, Any]]:
    """Nodes that a file may not have built, whatever is around them."""
    evil, path = f"touch {canary.folder}/EXECUTED", str(canary.file)
    return {
        "a function of Python's": {"_target_": "os.system", "command": evil},
        "a builtin": {"_target_": "builtins.eval", "_args_": [f"open({path!r}, 'w')"]},
        "an alias in our modules": {"_target_": "d2v.interop.native.os.system", "command": evil},
        "a module that ours imports": {"_target_": "d2v.nn.encoder.torch.load", "f": path},
        "a name that ours imports": {"_target_": "d2v.data.texts.blocks.Path", "_args_": [path]},
        "a library's function": {"_target_": "torch.utils.collect_env.run", "command": evil},
        "a library's class": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
        "hydra itself": {"_target_": "hydra.utils.call", "config": {"_target_": "os.system"}},
        "our private function": {"_target_": "d2v.data.texts.blocks._write", "path": path, "content": "x"},
        "our public function": {"_target_": "d2v.data.texts.blocks.cache_dir", "folder": f"{canary.folder}/EXECUTED"},
        "our function that writes": {"_target_": "d2v.interop.exports.save_encoder"},
        "our command": {"_target_": "d2v.cli.launch.run", "command": "info"},
        "a class without a mark": {"_target_": "d2v.nn.block.Block", "dim": 16, "num_heads": 2},
        "a method": {"_target_": "d2v.nn.encoder.Encoder.load_state_dict"},
        "a dunder": {"_target_": "d2v.nn.encoder.Encoder.__init__.__globals__"},
        "a class's class": {"_target_": "d2v.nn.encoder.Encoder.__class__", "_args_": ["x", [], {}]},
        "a dunder module": {"_target_": "d2v.__main__.x"},
        "the registry of builds": {"_target_": "d2v.interop.build.build", "node": {"_target_": "os.system"}},
        "no package": {"_target_": "print"},
        "an empty name": {"_target_": ""},
        "dots": {"_target_": "..os.system"},
        "a name that is none": {"_target_": ["os.system"]},
        "blanks": {"_target_": " os.system"},
        "another spelling": {"_target_": "d2v.nn.encoder.\u0045ncoder\u200b"},
        "a package to import": {"_target_": "antigravity.x"},
        "hidden in a list": {"a": [[{"_target_": "os.system", "command": evil}]]},
        "partial": {"_target_": "os.system", "_partial_": True, "command": evil},
    }  # fmt: skip


PLACES = ("encoder", "encoder.norm_eps", "encoder.frontends", "encoder.frontends.image.in_chans", "encoder.depth")


@pytest.mark.parametrize("form", ["run", "export"])
def test_only_marked_classes_are_built(form: str, canary: Canary) -> None:
    """Of what a file names anywhere in its model, nothing else is called, imported or even looked up."""
    for i, (name, node) in enumerate(nodes(canary).items()):
        place = PLACES[i % len(PLACES)] if i else "encoder"
        if form == "run":
            path = make.run_file(canary.folder / f"{i}.ckpt", make.put(f"model.{place}", node))
        else:
            path = make.export_folder(canary.folder / f"{i}", make.put(place, node))
        assert "Traceback" not in refused(path), name
        canary.check()
    assert "antigravity" not in sys.modules


VALUES: dict[str, tuple[str, Any]] = {
    "layers by the billion": ("encoder.depth", 10**9),
    "a layer of a billion": ("encoder.embed_dim", 10**9),
    "many wide layers": ("encoder.depth", 1024),
    "wide MLPs": ("encoder.mlp_ratio", 64.0),
    "MLPs of an exabyte": ("encoder.mlp_ratio", 1e15),
    "infinite": ("encoder.mlp_ratio", float("inf")),
    "not a number": ("encoder.norm_eps", float("nan")),
    "negative": ("encoder.depth", -1),
    "a text for a number": ("encoder.depth", "1"),
    "a text to resolve": ("encoder.norm_eps", "${oc.env:D2V_CANARY}"),
    "a flag for a number": ("encoder.depth", True),
    "a list for a number": ("encoder.depth", [1]),
    "a mapping for a number": ("encoder.depth", {"a": 1}),
    "a huge image": ("encoder.frontends.image.img_size", 7 * 10**8),
    "a large image": ("encoder.frontends.image.img_size", 28000),
    "an unknown argument": ("encoder.nothing", 1),
    "arguments by place": ("encoder._args_", [1]),
    "a huge whole number": ("encoder.num_heads", 10**4000),
    "a grid": ("encoder.rel_pos_grid", [10**5, 10**5]),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("form", ["run", "export"])
def test_values_are_checked_before_anything_is_built(form: str, name: str, canary: Canary) -> None:
    place, value = VALUES[name]
    if form == "run":
        path = make.run_file(canary.folder / "evil.ckpt", make.put(f"model.{place}", value))
    else:
        path = make.export_folder(canary.folder / "evil", make.put(place, value))
    assert refused(path)


def test_patterns_of_files_are_checked() -> None:
    node = {"_target_": "d2v.data.speech.factories.audio_folder", "root": "/nowhere", "conv_layers": [[8, 10, 5]]}
    for key in ("label_pattern", "group_pattern"):
        with pytest.raises(ValueError, match=rf"data\.{key}: the pattern .* repeats a group"):
            check_node({**node, key: "(a+)+$"}, key="data")
        check_node({**node, key: "(a+)+$"}, key="data", trusted=True)
        check_node({**node, key: r"^(\d)_"}, key="data")


def test_words_of_a_run_that_is_resumed_are_checked() -> None:
    data = {"_target_": "d2v.data.speech.factories.audio_folder", "label_pattern": "(a+)+$"}
    check_words_of_file({"data": data}, {"data": data})  # the user's own
    with pytest.raises(ValueError, match=r"data\.label_pattern: the pattern .* repeats a group"):
        check_words_of_file({"data": data}, {"data": {**data, "label_pattern": "a"}})
    for target in ("os.system", ["os.system"]):
        config = {"callbacks": {"x": [{"_target_": target}]}}
        with pytest.raises(ValueError, match=r"callbacks\.x\.0\._target_="):
            check_words_of_file(config, {"data": data})


def test_good_files_are_read(tmp_path: Path) -> None:
    for path in (
        make.run_file(tmp_path / "good.ckpt"),
        make.export_folder(tmp_path / "export"),
        make.fairseq_file(tmp_path / "good.pt"),
        make.huggingface_folder(tmp_path / "huggingface"),
    ):
        assert open_checkpoint(path).encoder.embed_dim == 16


CONTENTS: dict[str, Any] = {
    "no configuration": {"d2v": {}},
    "a configuration that is a list": {"d2v": {"config": [1]}},
    "a run that is a text": {"d2v": "x"},
    "no model": {"d2v": {"config": {"data": {}}}},
    "data that are a list": {"d2v": {"config": {"model": make.MODEL, "inputs": {}, "data": [1]}}},
    "inputs that are a list": {"d2v": {"config": {"model": make.MODEL, "inputs": [1]}}},
    "no weights": {"state_dict": {}},
    "weights that are texts": {"state_dict": {"model.a": "x"}},
    "weights that are a list": {"state_dict": [1]},
    "a step that is a text": {"global_step": "x"},
}


@pytest.mark.parametrize("name", CONTENTS)
def test_runs_that_lack_parts(name: str, canary: Canary) -> None:
    assert refused(make.run_file(canary.folder / "evil.ckpt", **CONTENTS[name]))


def _safetensors(header: bytes, content: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + content


def _entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


WEIGHTS = {
    "no header": b"",
    "a header of an exabyte": _safetensors(b"{}", length=1 << 60),
    "a header of a gigabyte": _safetensors(b"{}", length=1 << 30),
    "a header that is no JSON": _safetensors(b"{" * 100),
    "a header nested too deep": _safetensors(b'{"a":' * 10_000),
    "tensors that overlap": _safetensors(
        json.dumps({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}).encode(), b"x" * 12
    ),
    "a tensor beyond the end": _safetensors(json.dumps({"a": _entry([2], 0, 8)}).encode(), b"x"),
    "a tensor of an exabyte": _safetensors(json.dumps({"a": _entry([1 << 60], 0, 8)}).encode(), b"x" * 8),
    "a negative shape": _safetensors(json.dumps({"a": _entry([-1], 0, 8)}).encode(), b"x" * 8),
    "an unknown type": _safetensors(json.dumps({"a": _entry([1], 0, 4, "X9")}).encode(), b"x" * 4),
    "a type of another format": _safetensors(json.dumps({"a": _entry([4], 0, 4, "F8_E8M0")}).encode(), b"x" * 4),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("form", ["export", "huggingface"])
def test_headers_of_weights(form: str, name: str, canary: Canary) -> None:
    folder = canary.folder / "evil"
    if form == "export":
        make.export_folder(folder)
        (folder / "encoder.safetensors").write_bytes(WEIGHTS[name])
    else:
        make.huggingface_folder(folder)
        (folder / "model.safetensors").write_bytes(WEIGHTS[name])
    assert refused(make.sealed(folder))


def test_configurations_of_exports(canary: Canary) -> None:
    laughs = "a: &a [x, x, x]\nb: [" + ", ".join(["*a"] * 9) + "]\nencoder: {}\n"
    for i, text in enumerate((laughs, "[" * 500, "encoder: !!python/object/apply:os.system [x]", "a: 1", "encoder: x")):
        folder = make.export_folder(canary.folder / f"{i}")
        (folder / "config.yaml").write_text(text)
        assert refused(make.sealed(folder))
    folder = make.export_folder(canary.folder / "link")
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").symlink_to("/dev/zero")
    assert refused(folder)


FAIRSEQ: dict[str, tuple[str, Any]] = {
    "layers by the billion": ("cfg.model.depth", 10**9),
    "a layer of a billion": ("cfg.model.embed_dim", 10**9),
    "a huge image": ("cfg.model.modalities.image.input_size", 10**9),
    "a text for a number": ("cfg.model.depth", "__import__('os').system('x')"),
    "a node": ("cfg.model.norm_eps", {"_target_": "os.system", "command": "x"}),
    "a text to resolve": ("cfg.model.norm_eps", "${oc.env:D2V_CANARY}"),
    "no configuration": ("cfg", {}),
    "a configuration that is a list": ("cfg", [1]),
    "a teacher that is a list": ("model._ema", [1]),
    "a division by zero": ("cfg.model.modalities.image.patch_size", 0),
}


@pytest.mark.parametrize("name", FAIRSEQ)
def test_files_of_fairseq(name: str, canary: Canary) -> None:
    assert refused(make.fairseq_file(canary.folder / "evil.pt", make.put(*FAIRSEQ[name])))


def test_convolutions_of_fairseq_are_counted_before_they_are_repeated() -> None:
    from d2v.interop.fairseq.config import parse_convs

    start = time.process_time()
    for spec in ("[(512,10,5)] * 10000000000", "[(1,1,1)]" + "+[(1,1,1)]" * 1000, f"[({'9' * 5000},1,1)]"):
        with pytest.raises(ValueError, match="convolution"):
            parse_convs(spec)
    assert time.process_time() - start < 1


HUGGINGFACE: dict[str, tuple[str, Any]] = {
    "layers by the billion": ("num_hidden_layers", 10**9),
    "a layer of a billion": ("hidden_size", 10**9),
    "wide MLPs": ("intermediate_size", 10**12),
    "a huge image": ("image_size", 10**9),
    "a text for a number": ("num_hidden_layers", "1"),
    "a text to resolve": ("layer_norm_eps", "${oc.env:D2V_CANARY}"),
    "a node": ("hidden_size", {"_target_": "os.system", "command": "x"}),
    "a list for a number": ("num_attention_heads", [1]),
    "a division by zero": ("patch_size", 0),
    "null": ("hidden_size", None),
    "another architecture": ("model_type", {"a": 1}),
}


@pytest.mark.parametrize("name", HUGGINGFACE)
def test_folders_of_hugging_face(name: str, canary: Canary) -> None:
    assert refused(make.huggingface_folder(canary.folder / "evil", make.put(*HUGGINGFACE[name])))


def test_code_in_a_folder_of_hugging_face_is_not_looked_at(canary: Canary) -> None:
    folder = make.huggingface_folder(
        canary.folder / "folder",
        lambda c: c.update(auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, trust_remote_code=True),
    )
    for name in ("evil.py", "yaml.py", "__init__.py"):
        (folder / name).write_text(f"open({str(canary.folder / 'EXECUTED')!r}, 'w')")
    assert open_checkpoint(folder).encoder.embed_dim == 16


def test_an_index_names_files_beside_it_only(canary: Canary) -> None:
    folder = make.huggingface_folder(canary.folder / "evil")
    (folder / "model.safetensors").rename(canary.folder / "outside.safetensors")
    for weight_map in ({"a": "../outside.safetensors"}, {"a": str(canary.file)}, {"a": 1}, [1], {"a": "x/../y"}):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert refused(folder)


OTHERS = {
    "ONNX": b"\x08\x08\x12\x07pytorch",
    "an array": b"\x93NUMPY\x01\x00",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "nothing": b"",
    "zeros": b"\0" * 100,
    "an empty archive": b"PK\x05\x06" + b"\0" * 18,
    "the beginning of an archive": b"PK\x03\x04",
    "a tar": b"sys_info" + b"\0" * 249 + b"ustar\x0000" + b"\0" * 300,
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds(name: str, canary: Canary) -> None:
    path = canary.folder / "evil.ckpt"
    path.write_bytes(OTHERS[name])
    assert refused(path)


def test_what_is_no_regular_file_is_not_read(canary: Canary) -> None:
    os.mkfifo(canary.folder / "pipe.ckpt")
    for path in (canary.folder / "pipe.ckpt", Path("/dev/zero"), Path("/dev/stdin")):
        assert refused(path)


def test_a_model_larger_than_its_weights_is_never_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terabytes that every single range allows."""
    path = make.run_file(tmp_path / "evil.ckpt", make.put("model.encoder.depth", 1024))
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", _only_on_meta)
    with pytest.raises(ValueError, match="weights do not fit"):
        open_checkpoint(path)


def _only_on_meta(linear: torch.nn.Linear) -> None:
    assert linear.weight.is_meta
