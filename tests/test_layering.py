"""No import runs upward, function-level ones included, and the two frameworks stay where they belong."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
FILES = sorted((REPO / "d2v").rglob("*.py"))
SCRIPTS = {path.stem for path in (REPO / "scripts").glob("*.py")} | {"scripts", "tests", "conf"}

READING = ("bounds", "patterns")  # of what others wrote
EVERYWHERE = ("version", "errors", "values", "arguments")
# Layer -> the parts of d2v it may import, by prefix; every layer may import itself and the parts of EVERYWHERE.
LAYERS: dict[str, tuple[str, ...]] = {
    "__init__": (),
    "version": (),
    "errors": (),
    "values": (),
    "arguments": (),
    "terminal": (),
    "types": (),
    "bounds": ("lfs",),
    "patterns": (),
    "special_tokens": (),
    "lfs": (),
    "objective": ("types",),
    "nn": ("types", "objective"),
    "models": ("nn", "objective", "types"),
    "runs": READING,
    "interop": ("models", "nn", "objective", "types", "lfs", "runs", "special_tokens", *READING),
    "data": ("types", "objective.masking", "lfs", "runs.files", "special_tokens", *READING),
    "eval": ("types", "runs"),
    "tasks": ("types", "data.letters", "eval", "runs", "terminal"),
    "lit": ("types", "terminal", "objective", "nn", "models", "interop", "runs", "data", "eval", "tasks", *READING),
    "api": ("cli", "interop", "nn", "runs"),
    "cli": (
        "types",
        "terminal",
        "objective",
        "nn",
        "models",
        "interop",
        "runs",
        "data",
        "eval",
        "tasks",
        "lit",
        "lfs",
        *READING,
    ),
}
# Framework -> the layers that may import it.
FRAMEWORKS = {
    "lightning": {"lit", "cli"},
    "lightning_fabric": {"lit", "cli"},
    "pytorch_lightning": {"lit", "cli"},
    "hydra": {"cli"},
    "wandb": {"lit"},
    "tensorboard": {"lit"},
    "datasets": {"data"},
    "sklearn": {"eval"},
    "matplotlib": {"eval"},
}
# What a run's folder holds is read by whoever has Python, torch and these.
RUNS = {*sys.stdlib_module_names, "torch", "yaml", "omegaconf", "filelock"}
STDLIB_AND_TORCH = {"__future__", "collections", "dataclasses", "enum", "typing", "torch"}


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything a module imports, anywhere in it.

    ``from a import b`` gives a.b, which covers b being a module and b being a name in a.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parent = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parent, *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What ``module`` imports and must not.

    Args:
        source: its text.
        module: its dotted name, "d2v.nn.block"; a package without "__init__".
        is_package: whether it is an ``__init__.py``.
    """
    parts = module.split(".")
    layer = parts[1] if len(parts) > 1 else "__init__"
    if layer not in LAYERS:
        return [f"{module}: layer {layer!r} has no rule; say in LAYERS what it may import"]
    allowed = (*LAYERS[layer], *EVERYWHERE) + ((layer,) if layer != "__init__" else ())
    found = []
    for line, name in imports(source, module, is_package):
        top, _, rest = name.partition(".")
        if top == "d2v":
            ok = any(within(rest, prefix) for prefix in allowed)
            if within(name, "d2v.nn.frontends") and layer == "nn":
                ok = within(name, "d2v.nn.frontends.base") or name == f"{module}.{name.rpartition('.')[2]}"
        elif layer == "types":
            ok = top in STDLIB_AND_TORCH
        elif layer == "runs":
            ok = top in RUNS
        else:
            ok = layer in FRAMEWORKS.get(top, {layer}) and top not in SCRIPTS
        if not ok:
            found.append(f"{module}:{line} imports {name}")
    return found


def module_name(path: Path) -> str:
    relative = path.relative_to(REPO).with_suffix("")
    return ".".join(relative.parts[:-1] if relative.name == "__init__" else relative.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_no_import_runs_upward(path: Path) -> None:
    assert violations(path.read_text(), module_name(path), path.name == "__init__.py") == []


def test_every_layer_is_there() -> None:
    seen = {module_name(path).split(".")[1] for path in FILES if module_name(path) != "d2v"}
    assert seen == LAYERS.keys() - {"__init__"}


BAD = {
    "a framework in the model": ("d2v.models.data2vec2", "import lightning as L"),
    "a framework's submodule": ("d2v.eval.knn", "from lightning.pytorch import Callback"),
    "hydra in the trainer": ("d2v.lit.pretrain", "from hydra.utils import instantiate"),
    "numpy in types": ("d2v.types", "import numpy as np"),
    "types upward": ("d2v.types", "from d2v.objective import masking"),
    "objective upward": ("d2v.objective.losses", "from d2v.nn.tokens import gather_tokens"),
    "nn upward": ("d2v.nn.encoder", "import d2v.models.data2vec2"),
    "models to interop": ("d2v.models.data2vec2", "from d2v.interop.native import build"),
    "models to data": ("d2v.models.data2vec2", "from d2v.data.images.factories import ImageFolder"),
    "interop to data": ("d2v.interop.native", "from d2v.data import images"),
    "data to models": ("d2v.data.images.factories", "from d2v.models.data2vec2 import Data2Vec2"),
    "data to losses": ("d2v.data.images.factories", "from d2v.objective.losses import regression_loss_sum"),
    "data to the whole objective": ("d2v.data.images.factories", "from d2v.objective import losses"),
    "data to lit": ("d2v.data.images.factories", "from d2v.lit.data import PretrainDataModule"),
    "runs to interop": ("d2v.runs.checkpoints", "from d2v.interop.native import RunCheckpoint"),
    "numpy in runs": ("d2v.runs.record", "import numpy"),
    "eval to nn": ("d2v.eval.features", "from d2v.nn.encoder import Encoder"),
    "lit to cli": ("d2v.lit.setup", "from d2v.cli.run_dir import run_dir"),
    "frontend to frontend": ("d2v.nn.frontends.speech", "from d2v.nn.frontends.image import ImageFrontend"),
    "frontend to frontend, as a module": ("d2v.nn.frontends.speech", "from d2v.nn.frontends import image"),
    "encoder to one modality": ("d2v.nn.encoder", "from d2v.nn.frontends.image import ImageFrontend"),
    "relative": ("d2v.nn.block", "from ..models import data2vec2"),
    "relative within frontends": ("d2v.nn.frontends.speech", "from .image import ImageFrontend"),
    "in a function": ("d2v.objective.losses", "def f():\n    if True:\n        import d2v.lit.pretrain"),
    "in a type-checking block": ("d2v.eval.knn", "if TYPE_CHECKING:\n    from d2v.models.data2vec2 import Data2Vec2"),
    "in a class": ("d2v.nn.block", "class A:\n    def g(self):\n        from hydra import compose"),
    "by a call": ("d2v.nn.block", "import importlib\nimportlib.import_module('d2v.lit.pretrain')"),
    "by the dunder": ("d2v.nn.block", "__import__('lightning')"),
    "a script": ("d2v.interop.fairseq.names", "from scripts import check_parity"),
    "a script by its stem": ("d2v.interop.fairseq.names", "import check_parity"),
    "the package's root": ("d2v.nn.block", "import d2v"),
    "the package's names": ("d2v.nn.block", "from d2v import Data2Vec2"),
    "the root imports a part": ("d2v", "from d2v.types import Batch"),
    "an unknown layer": ("d2v.newthing.part", "import math"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_checker_finds_bad_imports(name: str) -> None:
    module, source = BAD[name]
    assert violations(source, module, is_package=module == "d2v")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("d2v.types", "import torch\nfrom dataclasses import dataclass\nfrom collections.abc import Callable"),
        ("d2v.nn.frontends.speech", "from d2v.nn.frontends.base import Frontend\nfrom .base import Frontend"),
        ("d2v.nn.encoder", "from .frontends.base import Frontend\nfrom d2v.objective.targets import instance_norm"),
        (
            "d2v.data.images.factories",
            "from d2v.objective.masking import MaskGenerator\nfrom d2v.data.samplers import BatchPlan",
        ),
        ("d2v.data.images.factories", "from d2v.types import Batch\nimport datasets"),
        ("d2v.lit.pretrain", "import lightning as L\nfrom d2v.eval.knn import knn_accuracy"),
        ("d2v.cli.pretrain", "import hydra\nimport lightning\nfrom d2v.lit import setup"),
        ("d2v.runs.record", "import json, yaml\nfrom filelock import FileLock\nfrom d2v.version import __version__"),
        ("d2v.interop.native", "from d2v.runs.checkpoints import BEST"),
        ("d2v.interop.native", "from d2v.models.data2vec2 import Data2Vec2\nfrom d2v.version import __version__"),
    ],
)
def test_the_checker_lets_good_imports_pass(module: str, source: str) -> None:
    assert violations(source, module) == []


MODALITIES = {"image", "images", "speech", "audio", "text", "waveform", "spectrogram", "spectrograms"}


def modality_words(source: str) -> list[str]:
    """Identifiers and strings (docstrings aside) that name a modality."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = []
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            text = node.value
        elif isinstance(node, ast.Name):
            text = node.id
        elif isinstance(node, ast.Attribute):
            text = node.attr
        elif isinstance(node, ast.arg):
            text = node.arg
        words = set("".join(c if c.isalpha() else " " for c in text.lower()).split())
        found += [f"line {getattr(node, 'lineno', '?')}: {text}"] * bool(words & MODALITIES)
    return found


SHARED = [
    path
    for layer in ("nn", "models", "objective")
    for path in sorted((REPO / "d2v" / layer).rglob("*.py"))
    if path.parent.name != "frontends" or path.stem == "base"
]


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=module_name(p)) for p in SHARED],
)
def test_shared_code_names_no_modality(path: Path) -> None:
    assert modality_words(path.read_text()) == []


def test_the_word_search_finds_names_and_skips_docstrings() -> None:
    assert modality_words('"""Images and text."""\ndef f(x):\n    """Speech."""\n    return x\n') == []
    assert modality_words("def f(image_size): return 1")
    assert modality_words("if modality == 'speech': pass")
    assert modality_words("x = f'model.decoders.image.groups={groups}'")
    assert modality_words("context = extra") == []


# Packages that belong to a modality, or whose files are about other people's models of each.
OWNERS = (
    "d2v.data.images", "d2v.data.speech", "d2v.data.texts", "d2v.data.spectrograms", "d2v.data.samples",
    "d2v.nn.frontends", "d2v.interop.fairseq", "d2v.interop.huggingface", "d2v.interop.remote",
)  # fmt: skip
# Everyone else who names one, and why.
NAME_A_MODALITY = {
    "d2v.cli.commands": "about tokenizers",
    "d2v.cli.loading": "tokenizers",
    "d2v.cli.starting": "tokenizers",
    "d2v.cli.tokenizer": "trains a tokenizer on texts",
    "d2v.data.hub": "columns of texts",
    "d2v.data.hub_files": "columns by modality",
    "d2v.data.plain_text": "the column called text",
    "d2v.errors": "names of extras",
    "d2v.eval.beam": "the extra to install",
    "d2v.eval.figures.images": "titles",
    "d2v.eval.words": "the extra to install",
    "d2v.interop.onnx": "attention of texts",
}


def modalities_named(source: str, module: str) -> list[str]:
    """Strings that are the name of a modality, and imports of its package."""
    found = [
        f"line {node.lineno}: {node.value!r}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and node.value in ("image", "speech", "text", "audio", "spectrogram")
    ]
    owned = [owner for owner in OWNERS if owner.startswith("d2v.data.")]
    owned += [f"d2v.nn.frontends.{name}" for name in ("image", "speech", "text", "spectrogram")]
    found += [f"line {line}: {name}" for line, name in imports(source, module) if any(within(name, o) for o in owned)]
    return found


def test_modalities_are_named_where_the_list_says() -> None:
    named = set()
    for path in FILES:
        module = module_name(path)
        if not any(within(module, owner) for owner in OWNERS) and modalities_named(path.read_text(), module):
            named.add(module)
    assert named == NAME_A_MODALITY.keys()


def test_the_search_finds_strings_and_imports() -> None:
    assert modalities_named("if modality == 'speech': pass", "d2v.cli.x") == ["line 1: 'speech'"]
    assert modalities_named("def f():\n    from d2v.data.texts import blocks", "d2v.cli.x") == [
        "line 2: d2v.data.texts.blocks"
    ]
    assert modalities_named("x = 'a text'  # no modality", "d2v.cli.x") == []
