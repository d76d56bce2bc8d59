"""Make the text and speech samples that ship with the package, from two Debian packages' contents.

    python scripts/prepare/samples.py text WORDNET [--exclude FILE]
    python scripts/prepare/samples.py speech SOUNDS TRANSCRIPTS

WORDNET is the folder of ``data.noun`` and its like (package wordnet-base), SOUNDS a folder of .wav prompts (package
asterisk-core-sounds-en-wav), TRANSCRIPTS ``core-sounds-en.txt.gz`` (package asterisk-core-sounds-en). Both write into
``d2v/data/samples``, the same bytes every time.
"""

from __future__ import annotations

import argparse
import gzip
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import soundfile

SAMPLES = Path(__file__).parents[1] / "d2v" / "data" / "samples"
NUM_VAL = 2500
# WordNet's lexicographer files, in the order of their numbers.
LEXICAL_CLASSES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession",
    "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption",
    "verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession",
    "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def make_text(wordnet: Path, exclude: Path | None) -> Path:
    """``wordnet_glosses.tsv.gz``: class and gloss of every synset, shuffled, the 2,500 held-out ones first.

    Held-out glosses differ from all others, and from the lines of ``exclude``, a corpus to pretrain on.
    """
    rows = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):  # the licence stands on top
                head, _, gloss = line.partition(" | ")
                rows.append((LEXICAL_CLASSES[int(head.split()[1])], " ".join(gloss.split())))
    rng = np.random.default_rng(0)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    known = set() if exclude is None else {" ".join(line.split()) for line in exclude.read_text().splitlines()}
    clauses = [gloss.partition(";")[0].strip() for _, gloss in rows]
    seen: dict[str, int] = {}
    for clause in clauses:
        seen[clause] = seen.get(clause, 0) + 1
    fit = [i for i, (_, gloss) in enumerate(rows) if gloss not in known and seen[clauses[i]] == 1]
    val = set(fit[:NUM_VAL])
    ordered = [rows[i] for i in sorted(val)] + [row for i, row in enumerate(rows) if i not in val]
    path = SAMPLES / "wordnet_glosses.tsv.gz"
    content = "".join(f"{name}\t{gloss}\n" for name, gloss in ordered).encode()
    path.write_bytes(gzip.compress(content, 9, mtime=0))
    return path


def make_speech(sounds: Path, transcripts: Path) -> Path:
    """``prompts.zip``: every spoken prompt as Ogg Vorbis, and ``transcripts.tsv``, in capital letters."""
    texts = {}
    for line in gzip.decompress(transcripts.read_bytes()).decode().splitlines():
        name, _, text = line.partition(":")
        spoken = transcribe(text)
        if spoken:
            texts[name.strip()] = spoken
    path = SAMPLES / "prompts.zip"
    lines = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted(texts.items()):
            if not (sounds / f"{name}.wav").is_file():
                continue
            waveform, rate = soundfile.read(sounds / f"{name}.wav", dtype="float32")
            file = io.BytesIO()
            soundfile.write(file, waveform, rate, format="OGG", subtype="VORBIS", compression_level=0.8)
            archive.writestr(zipfile.ZipInfo(f"{name}.ogg"), file.getvalue())
            lines.append(f"{name}.ogg\t{text}\n")
        archive.writestr(zipfile.ZipInfo("transcripts.tsv"), "".join(lines))
    return path


def transcribe(text: str) -> str:
    """Capital letters, apostrophes and single spaces, as LibriSpeech has them; "" where that is not what is spoken."""
    if "[" in text or re.search(r"\d\d|[^\x00-\x7f]", text):
        return ""
    for digit, word in enumerate(DIGITS):
        text = text.replace(str(digit), f" {word} ")
    return " ".join(re.sub(r"[^A-Z' ]", " ", text.upper()).split())


def main() -> None:
    """Make one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    text = commands.add_parser("text")
    text.add_argument("wordnet", type=Path)
    text.add_argument("--exclude", type=Path)
    speech = commands.add_parser("speech")
    speech.add_argument("sounds", type=Path)
    speech.add_argument("transcripts", type=Path)
    args = parser.parse_args()
    if args.command == "text":
        path = make_text(args.wordnet, args.exclude)
    else:
        path = make_speech(args.sounds, args.transcripts)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
