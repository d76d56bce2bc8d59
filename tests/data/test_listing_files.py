"""Files below a folder: what is listed, what is left out."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from d2v.data.files import list_files


def test_pipes_and_devices_are_left_out(tmp_path: Path) -> None:
    """Reading one may never end."""
    (tmp_path / "a.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    (tmp_path / "to_a.png").symlink_to("a.png")
    (tmp_path / "to_nowhere.png").symlink_to("gone.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "s.png"))
        listing = list_files(tmp_path, [".png"])
    assert listing.paths == ["a.png", "to_a.png", "to_nowhere.png"]  # the last one is named when it is read
    assert listing.left_out == {"pipes and devices": 3}
