"""``d2v check``: the table, the list of bad files, and the exit status."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType


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
    assert len((tmp_path / "bad.list").read_text().splitlines()) == 25
    assert "25 samples, 25 bad; a run tolerates 3" in bad.out


def test_what_is_missing_is_named(runs: ModuleType) -> None:
    assert "choose data=...: one of audio_folder" in runs.d2v_command("check").err
    assert "d2v check needs data.root=VALUE" in runs.d2v_command("check", "data=image_folder").err
