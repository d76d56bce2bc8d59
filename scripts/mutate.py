"""Mutation testing: change a line, run the tests that guard it, undo; prints one line for each mutation.

    python scripts/mutate.py                     every mutation of scripts/mutations.yaml
    python scripts/mutate.py eval/ losses.py     those of files with these words in their path

Works on a copy of the checkout. A mutation that survives is a hole in the tests: exit status 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[1]
COPIED = ("d2v", "conf", "docs", "scripts", "tests", "pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")


@dataclass(frozen=True)
class Mutation:
    """One change of one line.

    Attributes:
        file: in the checkout.
        old: text that stands once in the file.
        new: text that takes its place.
        tests: files or folders of tests, at least one of which must fail.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> str:
        """Change the file below ``root`` and return its text before that.

        Raises:
            ValueError: ``old`` does not stand exactly once.
        """
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file}: {self.old!r} stands {text.count(self.old)} times, not once")
        path.write_text(text.replace(self.old, self.new))
        return text


def read_mutations(path: Path) -> list[Mutation]:
    """The mutations of a YAML file: a list of mappings with the fields of :class:`Mutation`."""
    rows = yaml.safe_load(path.read_text())
    return [Mutation(**{**row, "tests": tuple(row["tests"].split())}) for row in rows]


def run_tests(root: Path, tests: tuple[str, ...]) -> bool:
    """Return whether the tests pass.

    Raises:
        RuntimeError: pytest itself failed, or there are no such tests.
    """
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    # 2: the collection failed, which a change of a line at import does, too.
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest {' '.join(tests)} ended with status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def main() -> int:
    """Print a line a mutation; 1 if any survived or is out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="only files with one of these in their path; all by default")
    parser.add_argument("--list", type=Path, default=Path(__file__).with_name("mutations.yaml"), help="the mutations")
    args = parser.parse_args()
    mutations = [m for m in read_mutations(args.list) if not args.words or any(word in m.file for word in args.words)]
    counts = {"killed": 0, "survived": 0, "stale": 0, "unguarded": 0}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in COPIED:
            source = REPO / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
        passes_unchanged = cache(lambda tests: run_tests(root, tests))
        for mutation in mutations:
            outcome = try_mutation(root, mutation, passes_unchanged(mutation.tests))
            counts[outcome] += 1
            print(f"{outcome:9}  {mutation.file}: {mutation.old.strip()} -> {mutation.new.strip()}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return int(counts["killed"] < len(mutations))


def try_mutation(root: Path, mutation: Mutation, passes_unchanged: bool) -> str:
    """ "killed" or "survived"; "stale" if the line is gone; "unguarded" if the tests fail without the change."""
    if not passes_unchanged:
        return "unguarded"
    try:
        before = mutation.apply(root)
    except (ValueError, FileNotFoundError):
        return "stale"
    try:
        return "survived" if run_tests(root, mutation.tests) else "killed"
    finally:
        (root / mutation.file).write_text(before)


if __name__ == "__main__":
    sys.exit(main())
