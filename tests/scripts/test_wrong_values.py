"""Every wrong value of every key of every command gets a clear answer, and every key of conf/ has a type."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def wrong_values() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wrong_values", SCRIPTS / "wrong_values.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wrong_values"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", ["pretrain", "finetune", "evaluate", "extract", "export", "import", "tokenizer"])
def test_every_wrong_value_is_answered_clearly(wrong_values: ModuleType, command: str) -> None:
    found = list(wrong_values.answers(command))
    assert len(found) > 10
    assert [one for one in found if one.verdict != "clear"] == []


def test_an_answer_that_is_not_clear_is_counted(wrong_values: ModuleType) -> None:
    config = wrong_values.configuration("tokenizer", ["files=texts"])
    schema = wrong_values.COMMANDS["tokenizer"][0]
    assert wrong_values.answer(schema, config, "kind", "vocab_size", 4096).verdict == "accepted"
    assert wrong_values.answer(schema, config, "kind", "vocab_size", "many").verdict == "clear"
