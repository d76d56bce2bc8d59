"""Messages on missing packages name what pip finds: d2v itself is on no index."""

from __future__ import annotations

import tomllib
from pathlib import Path

from d2v.errors import EXTRAS, how_to_install


def test_extras_are_those_of_the_package(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    declared = {name: tuple(packages) for name, packages in project["optional-dependencies"].items()}
    assert declared.items() >= EXTRAS.items()
    assert declared.keys() - EXTRAS.keys() == {"all", "dev"}


def test_how_to_install() -> None:
    assert how_to_install("speech") == (
        "pip install jiwer soundfile torchaudio (or, in a checkout of d2v, pip install '.[speech]')"
    )
    assert how_to_install("speech", "decode").endswith("pip install '.[speech,decode]')")
    assert how_to_install("transformers").startswith("pip install 'transformers>=5' (or")


def test_no_message_recommends_an_index_that_has_no_d2v(repo: Path) -> None:
    files = [path for part in ("d2v", "conf", "docs", "scripts") for path in (repo / part).rglob("*.*")]
    texts = [path for path in files if path.suffix in (".py", ".yaml", ".md")] + [repo / "README.md"]
    assert len(texts) > 200
    wrong = ("pip install 'd2v", "pip install d2v")
    assert [path for path in texts if any(words in path.read_text(encoding="utf-8") for words in wrong)] == []
