"""What a file may name is marked, and there is one list of it; arguments are checked before anything is called."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytest

import d2v
from d2v.interop.build import build, check_node, part_of
from d2v.values import is_buildable

# All that a checkpoint, an export or a run may name. Add a name here only with the mark's own rule in mind
# (d2v.values.buildable): nothing listed here may write, execute or import what its arguments name.
MARKED = {
    "d2v.data.images.augment": {"ImageAugment"},
    "d2v.data.spectrograms.augment": {"SoundAugment"},
    "d2v.data.spectrograms.factories": {"sound_folder", "sound_manifest"},
    "d2v.data.texts.glue": {"glue"},
    "d2v.data.images.factories": {"hf_images", "image_folder", "imagenet", "samples"},
    "d2v.data.speech.factories": {"audio_folder", "audio_manifest", "hf_audio", "librispeech", "samples_speech"},
    "d2v.data.texts.factories": {"hf_text", "samples_text", "text_files"},
    "d2v.eval.beam": {"BeamDecoder"},
    "d2v.lit.callbacks.checkpoint": {"CheckpointEvery"},
    "d2v.lit.callbacks.finite": {"SkippedSteps"},
    "d2v.lit.callbacks.health": {"HealthMonitor"},
    "d2v.lit.callbacks.probe": {"OnlineProbe"},
    "d2v.lit.callbacks.progress": {"ProgressReport", "Throughput"},
    "d2v.lit.callbacks.score": {"ScoreEvery"},
    "d2v.lit.loggers": {"CSVLogger", "tensorboard_logger", "wandb_logger"},
    "d2v.lit.optim": {"adamw", "muon"},
    "d2v.models.cls_head": {"ClsHead"},
    "d2v.models.data2vec": {"Data2Vec", "RegressionHead"},
    "d2v.models.data2vec2": {"Data2Vec2"},
    "d2v.models.heads": {"FeatureMask", "FinetunedModel", "FirstTokenHead", "FrameHead", "MeanPoolHead"},
    "d2v.models.mae": {"MaskedAutoencoder"},
    "d2v.nn.decoders": {"ConvDecoder1d", "ConvDecoder2d", "PixelDecoder"},
    "d2v.nn.encoder": {"Encoder", "transformer_encoder"},
    "d2v.nn.frontends.image": {"BeitFrontend", "ImageFrontend"},
    "d2v.nn.frontends.spectrogram": {"SpectrogramFrontend"},
    "d2v.nn.frontends.speech": {"SpeechFrontend"},
    "d2v.nn.frontends.text": {"TextFrontend"},
    "d2v.nn.trunk": {"Transformer"},
    "d2v.objective.masking": {"BlockMask", "InverseBlockMask", "RandomMask", "SpanMask"},
    "d2v.objective.schedules": {
        *("cosine", "ema_decay", "reconstruction_first", "tri_stage", "warmup_cosine", "warmup_linear")
    },
    "d2v.tasks.classification": {"Classification", "Regression"},
    "d2v.tasks.tagging": {"Tagging"},
    "d2v.tasks.transcription": {"Transcription"},
}


def test_the_list_of_what_a_file_may_name() -> None:
    found: dict[str, set[str]] = {}
    for info in pkgutil.walk_packages(d2v.__path__, "d2v."):
        if info.name == "d2v.interop.auto" or info.name.startswith(("d2v.conf", "d2v.interop.remote")):
            continue  # they need transformers, and no file's words reach them
        module = importlib.import_module(info.name)
        for name, part in vars(module).items():
            if getattr(part, "__module__", None) == info.name and is_buildable(part):
                found.setdefault(info.name, set()).add(name)
    assert found == MARKED


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "torch.utils.collect_env.run", "d2v.data.texts.blocks._write",
        "d2v.data.texts.blocks.cache_dir", "d2v.data.texts.factories.text_files.__call__", "d2v.nn.encoder.Batch",
        "d2v.data.images.factories.ImageData", "d2v.nn.encoder.torch", "d2v.cli.main.main", "d2v.interop.build.build",
        "d2v.models.data2vec2.SelfDistillation", "d2v.models.distillation.SelfDistillation", "d2v.nn.block.Block",
        "d2v", "d2v.nn", "", ".", "d2v..nn", "d2v.nn.encoder.Encoder ", "d2v.nn.encoder.Encoder.__init__",
        "d2v.data.__builtins__", "subprocess.Popen", "d2v.lit.data.Any",
    ],
)  # fmt: skip
def test_a_file_names_nothing_else(target: str) -> None:
    with pytest.raises(ValueError, match=r"_target_=.*refused: a file may name only what is marked as buildable"):
        part_of(target)


@pytest.mark.parametrize("target", [3, None, ["d2v.nn.encoder.Encoder"], {"_target_": "os.system"}], ids=str)
def test_a_target_is_a_text(target: Any) -> None:
    with pytest.raises(ValueError, match=r"_target_=.*: give the dotted name of a class"):
        build({"_target_": target})


HEAD = {"_target_": "d2v.models.heads.FrameHead", "embed_dim": 8, "num_outputs": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": "8"}, "head.embed_dim=8: give a whole number from 1 to"),
        ({"drop_rate": float("nan")}, "head.drop_rate=nan: give a number of at least 0 and below 1, finite"),
        ({"drop_rate": {"_target_": "os.system", "command": "true"}}, "head.drop_rate=.*: give a number"),
        ({"_args_": ["true"]}, "head._args_=.*: FrameHead has no such setting"),
        ({"_convert_": "all"}, "head._convert_=all: FrameHead has no such setting"),
        ({"_partial_": "yes"}, "head._partial_=yes: give true or false"),
        ({"embed_dim": 10**12}, "head.embed_dim=1000000000000: give a whole number from 1 to 131,072"),
    ],
)
def test_arguments_of_a_file_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build({**HEAD, **changes}, key="head")


def test_nodes_within_lists_and_mappings_are_checked_too() -> None:
    evil = {"_target_": "os.system", "command": "true"}
    for node in ([evil], {"a": {"b": [evil]}}, {**HEAD, "drop_rate": [evil]}):
        with pytest.raises(ValueError, match=r"refused|give a number"):
            build(node)


OUT_OF_RANGE: list[tuple[str, dict[str, Any]]] = [
    ("d2v.nn.decoders.ConvDecoder2d", {"depth": 0}),
    ("d2v.nn.decoders.ConvDecoder2d", {"proj_depth": 0}),
    ("d2v.nn.frontends.image.ImageFrontend", {"patch_size": 0}),
    ("d2v.nn.frontends.speech.SpeechFrontend", {"zero_padding": "last"}),
    ("d2v.nn.frontends.speech.SpeechFrontend", {"conv_layers": []}),
    ("d2v.nn.frontends.speech.SpeechFrontend", {"conv_layers": [[8, 0, 1]]}),
    ("d2v.models.data2vec.RegressionHead", {"depth": -1}),
    ("d2v.lit.optim.adamw", {"layer_decay": 0}),
    ("d2v.lit.optim.adamw", {"betas": [0.9]}),
    ("d2v.objective.masking.BlockMask", {"min_block": 0}),
    ("d2v.objective.masking.BlockMask", {"min_aspect": 1.5}),
    ("d2v.objective.masking.InverseBlockMask", {"mask_length": 0}),
    ("d2v.data.texts.factories.text_files", {"document": "page"}),
    ("d2v.data.texts.factories.text_files", {"probe_limit": 0}),
    ("d2v.data.texts.glue.glue", {"task": "colla"}),
]


@pytest.mark.parametrize(("target", "argument"), OUT_OF_RANGE, ids=str)
def test_annotations_hold_the_ranges(target: str, argument: dict[str, Any]) -> None:
    (name,) = argument
    with pytest.raises(ValueError, match=rf"^{name}(\[0\]\[1\])?=.*: (give|choose) "):
        build({"_target_": target, "_partial_": True, **argument}, trusted=True)


def test_nothing_is_built_before_all_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from d2v.models import heads

    built: list[str] = []

    @functools.wraps(heads.FeatureMask.__init__)  # signatures are read once a process
    def noted(self: heads.FeatureMask) -> None:
        built.append("mask")

    monkeypatch.setattr(heads.FeatureMask, "__init__", noted)
    node = {"a": {"_target_": "d2v.models.heads.FeatureMask"}, "b": {"_target_": "os.system"}}
    with pytest.raises(ValueError, match=r"b._target_=os.system: refused"):
        build(node)
    assert built == []


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("data", "d2v.lit.loggers.CSVLogger"), ("data.augment", "d2v.lit.loggers.CSVLogger"),
        ("labels.augment", "d2v.lit.callbacks.score.ScoreEvery"), ("decoder", "d2v.data.texts.factories.text_files"),
        ("task", "d2v.lit.loggers.CSVLogger"), ("model.encoder", "d2v.data.texts.factories.text_files"),
        ("", "d2v.lit.loggers.CSVLogger"), ("mask", "d2v.lit.loggers.CSVLogger"),
        ("encoder", "d2v.eval.beam.BeamDecoder"),
    ],
)  # fmt: skip
def test_a_file_names_data_where_data_go_and_modules_where_modules_go(key: str, target: str, tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    table.write_text("mine, and no table of a run")
    with pytest.raises(ValueError, match=r"_target_=d2v\..*refused: a file may name only .* in d2v\.\w+.* here"):
        build({"_target_": target, "run_dir": str(tmp_path)}, key=key)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_references_stay_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "42")
    assert build({"a": "${oc.env:SECRET}", "b": ["${c}"]}) == {"a": "${oc.env:SECRET}", "b": ["${c}"]}


def test_what_is_made_must_fit_where_it_goes() -> None:
    node = {
        "_target_": "d2v.models.heads.FinetunedModel",
        "encoder": {"_target_": "d2v.models.heads.FeatureMask"},
        "head": HEAD,
    }
    with pytest.raises(ValueError, match=r"model.encoder._target_=.*FeatureMask: makes no Encoder"):
        check_node(node, key="model")


def test_given_arguments_are_filled_in_and_nobody_else_gives_them() -> None:
    head = build({"_target_": "d2v.models.heads.FrameHead", "num_outputs": 3}, {"embed_dim": 8, "other": 1})
    assert head.proj.in_features == 8
    with pytest.raises(ValueError, match=r"embed_dim=8: is filled in by d2v"):
        build(HEAD, {"embed_dim": 8})


def test_partial_nodes_wait_for_the_rest() -> None:
    schedule = build(
        {"_target_": "d2v.objective.schedules.warmup_cosine", "_partial_": True, "warmup_steps": 2},
        {"max_steps": 4},
        key="schedule",
    )
    assert schedule(1) == 0.5


PACKAGE = """
import d2v

@d2v.buildable
class Marked:
    def __init__(self, size: int = 1) -> None:
        self.size = size

class Plain:
    pass

Alias = Marked
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "parts_of_mine.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "parts_of_mine", raising=False)
    return "parts_of_mine"


def test_packages_of_the_users_must_be_trusted_and_marked(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=rf"refused.*set D2V_TRUST={package}"):
        build({"_target_": f"{package}.Marked"})
    assert package not in sys.modules  # nor was it imported
    monkeypatch.setenv("D2V_TRUST", f"other, {package}")
    assert build({"_target_": f"{package}.Marked", "size": 3}).size == 3
    for name in ("Plain", "Alias", "d2v"):
        with pytest.raises(ValueError, match=r"refused.*mark the class in parts_of_mine with @d2v.buildable"):
            build({"_target_": f"{package}.{name}"})


def test_the_users_own_words_name_anything_that_can_be_called() -> None:
    assert build({"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}, trusted=True) * 2 == 1
    with pytest.raises(ValueError, match=r"data._target_=no.such.thing: cannot be imported"):
        build({"_target_": "no.such.thing"}, key="data", trusted=True)
    with pytest.raises(ValueError, match=r"_target_=math.pi: is no class or function"):
        build({"_target_": "math.pi"}, trusted=True)


def test_errors_of_what_is_built_name_keys_once() -> None:
    node = {
        "_target_": "d2v.nn.encoder.transformer_encoder",
        **{"embed_dim": 30, "depth": 1, "num_heads": 3},
        "frontends": {"image": {"_target_": "d2v.nn.frontends.image.ImageFrontend", "embed_dim": 30, "img_size": 30}},
    }
    message = (
        r"^model\.encoder\.frontends\.image\.patch_size=16 does not divide model\.encoder\.frontends\.image\.img_size"
    )
    with pytest.raises(ValueError, match=message):
        build(node, key="model.encoder")
    with pytest.raises(
        ValueError, match=r"^frontends\.image\.patch_size=16 does not divide frontends\.image\.img_size"
    ):
        build(node)
    node["frontends"]["image"] |= {"img_size": 32, "embed_dim": 32}
    message = r"^model\.encoder\.frontends\.image\.embed_dim=32 must equal model\.encoder\.embed_dim=30$"
    with pytest.raises(ValueError, match=message):
        build(node, key="model.encoder")


def test_what_the_caller_fills_in_is_no_key(tmp_path: Path) -> None:
    node = {"_target_": "d2v.lit.callbacks.checkpoint.CheckpointEvery", "keep": 0}
    with pytest.raises(ValueError, match=r"^callbacks\.checkpoint\.keep=0"):
        build(node, {"run_dir": tmp_path}, key="callbacks.checkpoint")
    (tmp_path / "parts_with_keys.py").write_text("def fail(a, b): raise ValueError(f'a={a}, b={b}')")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ValueError, match=r"^x\.a=1, b=2$"):
            build({"_target_": "parts_with_keys.fail", "a": 1}, {"b": 2}, key="x", trusted=True)
