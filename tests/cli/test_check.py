"""``d2v check``: the table, the list of bad files, and the exit status."""

from __future__ import annotations

import wave
from pathlib import Path
from types import ModuleType

import pytest


def test_check(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    command = ["check", "data=image_folder", "data.in_chans=1", "data.mean=[0.5]", "data.std=[0.5]"]
    good = runs.d2v_command(*command, f"data.root={images}")
    assert good.status in (0, None), good.err
    assert "classes: dark 12, light 12" in good.out
    assert "36 samples, 0 bad" in good.out
    for i in range(25):
        (tmp_path / f"{i:02d}.png").write_bytes(b"no image")
    bad = runs.d2v_command(*command, f"data.root={tmp_path}", f"report={tmp_path / 'bad.list'}")
    assert bad.status == 1
    assert bad.out.count("bad: ") == 20
    assert "... and 5 more" in bad.out
    first, *rest = (tmp_path / "bad.list").read_text().splitlines()
    assert first.startswith("# d2v check")
    assert len(rest) == 25
    assert "25 samples, 25 bad; a run tolerates 3" in bad.out


def test_a_report_replaces_nothing_but_a_report(runs: ModuleType, images: Path, tmp_path: Path) -> None:
    command = ["check", "data=image_folder", "data.in_chans=1", "data.mean=[0.5]", "data.std=[0.5]"]
    image = next(images.rglob("*.png"))
    content = image.read_bytes()
    result = runs.d2v_command(*command, f"data.root={images}", f"report={image}")
    assert f"report={image}: is there already and is no report of d2v check" in result.err
    assert image.read_bytes() == content
    for _ in range(2):
        result = runs.d2v_command(*command, f"data.root={images}", f"report={tmp_path / 'report.txt'}")
        assert result.status in (0, None), result.err


def test_names_do_not_steer_the_terminal(runs: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a\x1b]0;title\x07.png").write_bytes(b"no image")
    result = runs.d2v_command("check", "data=image_folder", f"data.root={tmp_path}")
    assert "bad: a\\x1b]0;title\\x07.png" in result.out
    assert "\x1b" not in result.out + result.err


def test_nothing_to_read_is_a_failure(runs: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    write_wav(tmp_path / "a.wav", seconds=0.5)
    result = runs.d2v_command("check", "data=audio_folder", f"data.root={tmp_path}", "data.min_seconds=2")
    assert result.status == 1
    assert "0 samples, 0 bad" in result.out


def write_wav(path: Path, seconds: float) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * int(16000 * seconds)))


def test_images_of_any_size_are_checked(runs: ModuleType, images: Path) -> None:
    command = ["check", "data=image_folder", "data.in_chans=1", "data.mean=[0.5]", "data.std=[0.5]", "data.img_size=30"]
    assert runs.d2v_command(*command, f"data.root={images}").status in (0, None)
    result = runs.d2v_command(*command, f"data.root={images}", "data.patch_size=7")
    assert "data.img_size=30 is no multiple of data.patch_size=7" in result.err


def test_what_is_missing_is_named(runs: ModuleType) -> None:
    assert "choose data=...: one of audio_folder" in runs.d2v_command("check").err
    assert "d2v check needs data.root=VALUE" in runs.d2v_command("check", "data=image_folder").err
