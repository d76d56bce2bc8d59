"""Exports: old or new, never mixed, never over what is not an export; every file that changed is named."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from d2v.runs import exports
from d2v.runs.archives import Damaged
from d2v.runs.exports import SUMS, check_export, export_folder, read_sums
from d2v.runs.files import NotWritten

Swap = Callable[[Path, Path], bool]


def write(folder: Path, version: str, *names: str, format: str = "safetensors") -> None:
    with export_folder(folder, format) as part:
        for name in names or ("weights", "config.yaml", "README.md"):
            (part / name).write_text(f"{name} {version}")


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != SUMS}


def whole(version: str) -> dict[str, str]:
    return {name: f"{name} {version}" for name in ("weights", "config.yaml", "README.md")}


@pytest.fixture(params=["swapped", "file by file"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the system replaces folders."""
    if request.param == "file by file":
        monkeypatch.setattr(exports, "_exchange", lambda part, place: False)
    return str(request.param)


def test_a_new_export_and_one_over_it(tmp_path: Path, swap: str) -> None:
    folder = tmp_path / "new" / "folder"
    for version in ("1", "2"):
        write(folder, version)
        assert content(folder) == whole(version)
        assert check_export(folder, ["weights"])
        assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, capture_output=True, check=False).returncode == 0


def test_files_of_the_older_export_go_and_those_of_others_stay(tmp_path: Path, swap: str) -> None:
    write(tmp_path / "e", "1", "weights", "tokenizer.json")
    (tmp_path / "e" / "notes.txt").write_text("mine")
    (tmp_path / "e" / "pictures").mkdir()
    write(tmp_path / "e", "2", "weights")
    assert (tmp_path / "e" / "pictures").is_dir()
    (tmp_path / "e" / "pictures").rmdir()
    assert content(tmp_path / "e") == {"weights": "weights 2", "notes.txt": "mine"}
    assert check_export(tmp_path / "e")


def test_what_is_no_export_is_refused_rather_than_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine")
    with pytest.raises(
        ValueError, match=r"^output=.*run: holds files that are no export's \(config.yaml\): give a new"
    ):
        write(tmp_path / "run", "1")
    assert content(tmp_path / "run") == {"config.yaml": "mine"}
    write(tmp_path / "e", "1")
    with pytest.raises(ValueError, match=r"holds an export of format=safetensors: give another folder"):
        write(tmp_path / "e", "2", format="onnx")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give a folder"):
        write(tmp_path / "file", "1")
    (tmp_path / "hidden" / ".git").mkdir(parents=True)
    write(tmp_path / "hidden", "1")
    assert (tmp_path / "hidden" / ".git").is_dir()


def test_a_link_to_a_folder_is_followed_by_name_only(tmp_path: Path) -> None:
    write(tmp_path / "real", "1")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == whole("2")


def test_no_room_leaves_the_old_export_and_no_part(tmp_path: Path) -> None:
    def fail() -> None:
        with export_folder(tmp_path / "e", "safetensors") as part:
            (part / "weights").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(NotWritten, match=r"output=.*e: could not be written .*No space left"):
        fail()
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "e", "1")
    with pytest.raises(NotWritten):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
    assert content(tmp_path / "e") == whole("1")


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside others"])
def test_a_kill_at_any_moment_leaves_the_old_the_new_or_what_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool, swap: str
) -> None:
    """Copies of the folder before each rename and unlink are what a kill would leave."""
    seen: list[Path] = []
    folder = tmp_path / "e"
    write(folder, "1", "weights", "config.yaml", "stale")
    if others:
        (folder / "notes.txt").touch()

    def spying(name: str) -> Callable[..., object]:
        method = getattr(Path, name)

        def spy(path: Path, *args: object, **kwargs: object) -> object:
            if path.is_relative_to(tmp_path):
                seen.append(Path(shutil.copytree(folder, tmp_path / "seen" / str(len(seen)))))
            return method(path, *args, **kwargs)

        return spy

    with monkeypatch.context() as context:
        for name in ("replace", "rename", "unlink"):
            context.setattr(Path, name, spying(name))
        write(folder, "2", "weights", "config.yaml")
    assert len(seen) > 1
    for copy in seen:
        try:
            assert check_export(copy, ["weights"])
        except Damaged:
            assert swap == "file by file" or others
            continue
        versions = {(copy / name).read_text()[-1] for name in ("weights", "config.yaml")}
        assert versions in ({"1"}, {"2"})


@pytest.mark.parametrize("name", ["weights", "config.yaml"])
@pytest.mark.parametrize("how", ["flipped", "replaced", "cut", "gone"])
def test_a_file_that_is_another_is_named(tmp_path: Path, name: str, how: str) -> None:
    folder = tmp_path / "e"
    write(folder, "1")
    path = folder / name
    text = path.read_bytes()
    changed = {"flipped": bytes([text[0] ^ 64]) + text[1:], "replaced": b"another", "cut": text[:-1]}
    path.unlink() if how == "gone" else path.write_bytes(changed[how])
    with pytest.raises(
        Damaged, match=rf"^{path} is {'missing' if how == 'gone' else 'not the file that was exported'}"
    ):
        check_export(folder)


def test_the_card_may_be_improved_and_files_added(tmp_path: Path) -> None:
    write(tmp_path, "1")
    (tmp_path / "README.md").write_text("better")
    (tmp_path / "notes").touch()
    assert check_export(tmp_path)
    with pytest.raises(Damaged, match="notes is not listed in SHA256SUMS"):
        check_export(tmp_path, ["notes"])


@pytest.mark.parametrize("damage", [lambda s: s[: len(s) // 2], lambda s: "\n".join(s.splitlines()[:-1]), lambda s: "",
                                    lambda s: s.replace("weights", "../weights"), lambda s: s.upper()])  # fmt: skip
def test_damaged_checksums_are_named(tmp_path: Path, damage: Callable[[str], str]) -> None:
    write(tmp_path, "1")
    path = tmp_path / SUMS
    path.write_text(damage(path.read_text()))
    with pytest.raises(Damaged, match="SHA256SUMS is damaged"):
        check_export(tmp_path)


def test_a_folder_without_checksums(tmp_path: Path) -> None:
    assert not check_export(tmp_path)
    assert read_sums(tmp_path / "missing") is None
    assert not check_export(tmp_path / "missing")
