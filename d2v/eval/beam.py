"""Beam search for CTC, optionally with an n-gram language model and a lexicon.

It is torchaudio's decoder with flashlight-text (extra ``d2v[speech,decode]``).

Without a lexicon, any word can be spelled and the language model must be one of letters; with a lexicon, one of words.
KenLM reads the models, .arpa or binary.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from d2v.errors import how_to_install
from d2v.values import BeamSize, FiniteFloat, PathStr, buildable

_BOUNDARY, _BLANK = "|", "<blank>"


@buildable
class BeamDecoder:
    """Decoder of (T, C) log-probabilities into text.

    Args:
        letters: the alphabet: output 0 is CTC's blank, output i + 1 the i-th letter; a space separates words.
        beam: number of hypotheses kept at each frame.
        lm: file of an n-gram model, or None.
        lexicon: file of lines "WORD W O R D |", or None for free spelling.
        lm_weight: weight of the language model.
        word_score: score added for every word, with a lexicon.
        boundary_score: score added for every word boundary.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: torchaudio or flashlight-text is not installed, a line of the lexicon cannot be spelled,
            or KenLM cannot read the model.
    """

    def __init__(
        self,
        letters: str,
        beam: BeamSize = 50,
        lm: PathStr | None = None,
        lexicon: PathStr | None = None,
        lm_weight: FiniteFloat = 2.0,
        word_score: FiniteFloat = -1.0,
        boundary_score: FiniteFloat = 0.0,
    ) -> None:
        for key, path in (("lm", lm), ("lexicon", lexicon)):
            if path is not None and not Path(os.path.expanduser(path)).is_file():
                raise FileNotFoundError(f"{key}={path}: no such file")
        try:
            from torchaudio.models.decoder import ctc_decoder
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"decoder=beam needs flashlight-text: {how_to_install('speech', 'decode')}") from error
        tokens = [_BLANK, *(_BOUNDARY if letter == " " else letter for letter in letters)]
        if lexicon is not None:
            check_lexicon(lexicon, letters)
        self._spells_words = lexicon is not None
        try:
            self._decoder: Any = ctc_decoder(
                lexicon=None if lexicon is None else str(Path(os.path.expanduser(lexicon))),
                tokens=tokens,
                lm=None if lm is None else str(Path(os.path.expanduser(lm))),
                beam_size=beam,
                lm_weight=lm_weight,
                word_score=word_score if lexicon is not None else 0.0,
                sil_score=boundary_score,
                log_add=False,
                blank_token=_BLANK,
                sil_token=_BOUNDARY,
            )
        except RuntimeError as error:
            if lm is None:
                raise
            raise ValueError(
                f"lm={lm}: KenLM cannot read it ({error}); give an n-gram model as .arpa or KenLM's binary"
            ) from error

    def __call__(self, log_probs: Tensor) -> str:
        """Return the best hypothesis.

        Args:
            log_probs: (T, C) float, on the CPU.
        """
        hypotheses = self._decoder(log_probs.float().unsqueeze(0).contiguous())[0]
        if not hypotheses:
            return ""
        if self._spells_words:
            return " ".join(hypotheses[0].words)
        text = "".join(self._decoder.idxs_to_tokens(hypotheses[0].tokens))
        return " ".join(text.replace(_BOUNDARY, " ").split())


def check_lexicon(lexicon: str, letters: str) -> None:
    """Check that a lexicon has lines, and that each line is a word and its spelling.

    Args:
        lexicon: file of lines "WORD W O R D |".
        letters: the alphabet; a space is written |.

    Raises:
        ValueError: a line is invalid, or there is none; the message names the line.
    """
    known = {_BOUNDARY if letter == " " else letter for letter in letters}
    path = Path(os.path.expanduser(lexicon))
    lines = path.read_bytes().splitlines()
    if not lines:
        raise ValueError(f"lexicon={lexicon}: nothing is in it; write lines such as 'CAT C A T |'")
    for number, line in enumerate(lines, 1):
        where = f"lexicon: {path}:{number}"
        try:
            parts = [part.decode() for part in line.split()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: {error}; write the file in UTF-8") from error
        if len(parts) < 2:
            raise ValueError(f"{where}: {line.decode()!r} spells no word; write 'CAT C A T |', or remove the line")
        unknown = sorted(set(parts[1:]) - known)
        if unknown:
            raise ValueError(
                f"{where}: {parts[0]} is spelled with {' '.join(unknown)}, but the model's letters are "
                f"{' '.join(sorted(known))}; spell words in these, with spaces between them"
            )
