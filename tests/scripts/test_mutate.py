"""Mutations: killed, survived, stale, unguarded."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def mutate() -> ModuleType:
    return importlib.import_module("mutate")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A module of two lines, one of them tested."""
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\ndef half(a):\n    return a / 2\n")
    (tmp_path / "test_sums.py").write_text("import sums\ndef test_add():\n    assert sums.add(1, 2) == 3\n")
    (tmp_path / "test_broken.py").write_text("def test_nothing():\n    assert False\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "tests", "outcome"),
    [
        ("a + b", "a - b", "test_sums.py", "killed"),
        ("a + b", "a +", "test_sums.py", "killed"),  # fails at import
        ("a / 2", "a / 3", "test_sums.py", "survived"),
        ("return", "yield", "test_sums.py", "stale"),  # stands twice
        ("a * b", "a - b", "test_sums.py", "stale"),
        ("a + b", "a - b", "test_broken.py", "unguarded"),
    ],
)
def test_outcomes(mutate: ModuleType, tree: Path, old: str, new: str, tests: str, outcome: str) -> None:
    before = (tree / "sums.py").read_text()
    mutation = mutate.Mutation("sums.py", old, new, (tests,))
    assert mutate.try_mutation(tree, mutation, mutate.run_tests(tree, (tests,))) == outcome
    assert (tree / "sums.py").read_text() == before


@pytest.mark.slow
def test_tests_that_do_not_exist_are_an_error(mutate: ModuleType, tree: Path) -> None:
    with pytest.raises(RuntimeError, match=r"pytest test_none\.py ended with status 4"):
        mutate.run_tests(tree, ("test_none.py",))


def test_the_list_is_read(mutate: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- {file: a.py, old: x, new: y, tests: tests/a tests/b}\n")
    assert mutate.read_mutations(path) == [mutate.Mutation("a.py", "x", "y", ("tests/a", "tests/b"))]


def test_every_mutation_of_the_list_fits_its_file_and_names_tests_that_are_there(mutate: ModuleType) -> None:
    mutations = mutate.read_mutations(mutate.REPO / "scripts" / "mutations.yaml")
    assert len(mutations) > 56
    for mutation in mutations:
        assert (mutate.REPO / mutation.file).read_text().count(mutation.old) == 1, mutation
        assert all((mutate.REPO / test).exists() for test in mutation.tests), mutation
