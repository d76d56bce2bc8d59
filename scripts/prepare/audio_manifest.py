"""List the audio files below a folder with their lengths: ``python scripts/prepare/audio_manifest.py DIR OUT.tsv``.

The tsv is what ``data=audio_manifest`` reads (and fairseq's wav2vec): the folder on the first line, then path, tab and
number of samples, all at one rate. Files that cannot be read, have another rate or a name that breaks the tsv are named
on stderr and left out.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from d2v.data.bad_samples import BadSample
from d2v.data.speech.clips import audio_files, audio_length, sampling_rate


def num_samples(path: Path, rate: int) -> int | str:
    """Length in samples, or why there is none."""
    if set("\t\n\r") & set(str(path)):
        return "its name holds a tab or a line break, which a manifest cannot"
    own_rate = sampling_rate(path)
    if own_rate not in (None, rate):
        return f"{own_rate} Hz, but the first file has {rate} Hz: a manifest has one rate"
    try:
        return audio_length(path, rate)
    except BadSample as error:
        return str(error)


def first_rate(folder: Path, names: list[str]) -> int:
    """The rate of the first file that can be read; 0 if there is none."""
    return next((rate for rate in (sampling_rate(folder / name) for name in names) if rate), 0)


def main() -> int:
    """Write the manifest; 1 if no file could be listed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    folder = args.folder.expanduser().resolve()
    names = [clip.path for clip in audio_files(str(folder), "folder")]
    rate = first_rate(folder, names)
    with ThreadPoolExecutor() as pool:
        lengths = list(pool.map(lambda name: num_samples(folder / name, rate), names))
    lines = [f"{name}\t{n}\n" for name, n in zip(names, lengths, strict=True) if isinstance(n, int)]
    for name, n in zip(names, lengths, strict=True):
        if isinstance(n, str):
            print(f"left out {name!a}: {n}", file=sys.stderr)
    args.output.write_text(f"{folder}\n" + "".join(lines), "utf-8", "surrogateescape")
    print(f"{args.output}: {len(lines)} files, {len(names) - len(lines)} left out")
    return 0 if lines else 1


if __name__ == "__main__":
    sys.exit(main())
