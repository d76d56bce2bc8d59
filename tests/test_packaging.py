"""pyproject.toml declares what d2v imports, with lower bounds, and names the licences of all that the wheel carries."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
# Names to import where they are not those to install.
MODULES = {
    "PIL": "pillow",
    "hydra": "hydra-core",
    "hydra_plugins": "hydra-submitit-launcher",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Licences that samples are under, by the name of the file with their text.
LICENCES = {"fashion_mnist": "MIT", "prompts": "CC-BY-SA-3.0", "wordnet": "LicenseRef-WordNet-3.0"}


def packages(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements}


REQUIRED = packages(PROJECT["dependencies"])
EXTRAS = {name: packages(found) - {"d2v"} for name, found in PROJECT["optional-dependencies"].items() if name != "dev"}


def imported(tree: ast.AST, always: bool) -> Iterator[str]:
    """Yield packages that a module imports: whenever it is imported itself, or somewhere in it."""
    for node in ast.iter_child_nodes(tree) if always else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", sorted((REPO / "d2v").rglob("*.py")), ids=lambda p: str(p.relative_to(REPO)))
def test_every_import_is_declared(path: Path) -> None:
    tree = ast.parse(path.read_text())
    own = {"d2v", *sys.stdlib_module_names}
    everything = {MODULES.get(name, name) for name in imported(tree, always=False)} - own
    assert everything <= REQUIRED.union(*EXTRAS.values())
    if path.parent.name != "remote" and path.name != "auto.py":  # those are for transformers alone
        assert {MODULES.get(name, name) for name in imported(tree, always=True)} - own <= REQUIRED


def test_every_requirement_has_a_lower_bound() -> None:
    extras = [r for name, found in PROJECT["optional-dependencies"].items() if name != "dev" for r in found]
    unbounded = [r for r in [*PROJECT["dependencies"], *extras] if ">=" not in r and not r.startswith("d2v[")]
    assert unbounded == []
    assert set(PROJECT["optional-dependencies"]) - {"all", "dev"} == set(
        re.findall(r"\w+", PROJECT["optional-dependencies"]["all"][0].partition("[")[2])
    )


def test_the_licence_names_all_that_the_wheel_carries() -> None:
    texts = [path.stem for path in (REPO / "d2v" / "data" / "samples").glob("*.LICENSE")]
    found = {next(licence for name, licence in LICENCES.items() if text.startswith(name)) for text in texts}
    assert set(PROJECT["license"].split(" AND ")) == {"Apache-2.0", *found}
