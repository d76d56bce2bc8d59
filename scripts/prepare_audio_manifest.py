"""List the audio files below a folder with their lengths: ``python scripts/prepare_audio_manifest.py DIR OUT.tsv``.

The tsv is what ``data=audio_manifest`` reads (and fairseq's wav2vec): the folder on the first line, then path, tab and
number of samples at the file's own rate. Files that cannot be read are named on stderr and left out.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile

from d2v.data.audio_sources import audio_files


def num_samples(path: Path) -> int | str:
    """Length in samples, or why there is none."""
    try:
        frames = int(soundfile.info(path).frames)
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        return str(error)
    return frames if frames > 0 else "no samples"


def main() -> int:
    """Write the manifest; 1 if no file could be listed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    folder = args.folder.expanduser().resolve()
    names = [clip.path for clip in audio_files(str(folder), "folder")]
    with ThreadPoolExecutor() as pool:
        lengths = list(pool.map(lambda name: num_samples(folder / name), names))
    lines = [f"{name}\t{n}\n" for name, n in zip(names, lengths, strict=True) if isinstance(n, int)]
    for name, n in zip(names, lengths, strict=True):
        if isinstance(n, str):
            print(f"left out {name}: {n}", file=sys.stderr)
    args.output.write_text(f"{folder}\n" + "".join(lines))
    print(f"{args.output}: {len(lines)} files, {len(names) - len(lines)} left out")
    return 0 if lines else 1


if __name__ == "__main__":
    sys.exit(main())
