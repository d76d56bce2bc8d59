"""Links, names and line widths of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "SECURITY.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def heading_anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in heading_anchors(file), target


@each_page
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert not re.findall(r"@[A-Z]+@|\bTODO\b|\bFIXME\b|\bXXX\b", page.read_text())


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "moves.md"], ids=lambda page: page.name)
def test_scripts_that_are_named_are_there(page: Path) -> None:
    for name in re.findall(r"(?<!tests/)scripts/\w+\.(?:py|json|sbatch)", page.read_text()):
        assert (ROOT / name).exists(), name


@each_page
def test_lines_are_wrapped_at_120_columns(page: Path) -> None:
    """Tables are exempt, and commands and links within a line of prose do not count."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "!["))]
    code = [line for line in lines if line.startswith("    ")]
    prose = [re.sub(r"`[^`]*`|\]\([^)]*\)", "", line) for line in lines if not line.startswith("    ")]
    assert [line for line in code + prose if len(line) > 120] == []


def test_targets_that_are_named_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (matrix,) = re.findall(r"target: \[(.+)\]", workflow)
    named = set(matrix.split(", "))
    pages = [
        *(page for page in PAGES if page.name != "CHANGELOG.md"),
        ROOT / ".ci" / "run",
        ROOT / ".github" / "pull_request_template.md",
    ]
    for text in (workflow, *(page.read_text() for page in pages)):
        for words in re.findall(r"(?:^ *|run: |`)make ((?:[a-z-]+ ?)+)", text, re.MULTILINE):
            named |= set(words.split())
    assert {"install", "lint", "type", "test", "test-faults", "parity"} <= named
    assert named <= targets
