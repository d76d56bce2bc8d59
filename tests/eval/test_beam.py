from pathlib import Path

import pytest
import torch

from d2v.data.letters import LETTERS
from d2v.eval.beam import BeamDecoder
from d2v.interop.build import build
from d2v.tasks.transcription import Transcription

pytest.importorskip("flashlight")


def frames(text: str, rival: str | None = None, share: float = 0.0) -> torch.Tensor:
    """Log-probabilities of a text, a blank after every letter; at every letter a rival has this share."""
    probabilities = torch.full((2 * len(text), len(LETTERS) + 1), 1e-4)
    for i, letter in enumerate(text):
        probabilities[2 * i, LETTERS.index(letter) + 1] = 1 - share
        if rival is not None:
            probabilities[2 * i, LETTERS.index(rival[i]) + 1] += share
        probabilities[2 * i + 1, 0] = 1.0
    return (probabilities / probabilities.sum(1, keepdim=True)).log()


def test_without_a_language_model_it_agrees_with_the_best_path_on_clear_frames() -> None:
    for text in ("ONE TWO", "A", "ALL WELL'S"):
        assert BeamDecoder(LETTERS)(frames(text)) == Transcription(LETTERS).best_path(frames(text)) == text


def test_a_beam_adds_up_paths_to_the_same_text() -> None:
    # Best path: blank, blank. But "A" gets .4 * .4 + 2 * .4 * .6 = .64 in all.
    probabilities = torch.full((2, len(LETTERS) + 1), 1e-9)
    probabilities[:, 0] = 0.6
    probabilities[:, LETTERS.index("A") + 1] = 0.4
    assert Transcription(LETTERS).best_path(probabilities.log()) == ""


def test_a_lexicon_and_its_language_model_decide_between_words(tmp_path: Path) -> None:
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("CAT C A T |\nCUT C U T |\nTHE T H E |\n")
    model = tmp_path / "lm.arpa"
    model.write_text(
        "\\data\\\nngram 1=6\nngram 2=2\n\n\\1-grams:\n-1.0\t<unk>\n-99\t<s>\t-0.3\n-0.5\t</s>\n-0.6\tTHE\t-0.3\n"
        "-1.5\tCAT\t-0.3\n-1.5\tCUT\t-0.3\n\n\\2-grams:\n-0.1\tTHE CUT\n-3.0\tTHE CAT\n\n\\end\\\n"
    )
    heard = frames("THE CAT ", rival="THE CUT ", share=0.45)
    assert BeamDecoder(LETTERS, lexicon=str(lexicon))(heard) == "THE CAT"
    assert BeamDecoder(LETTERS, lexicon=str(lexicon), lm=str(model))(heard) == "THE CUT"
    spelled = BeamDecoder(LETTERS, lexicon=str(lexicon))(frames("THE CAP ", rival="THE CAT ", share=0.3))
    assert spelled == "THE CAT"  # CAP is no word


def test_errors_name_the_key() -> None:
    with pytest.raises(ValueError, match=r"decoder\.beam=0"):
        build({"_target_": "d2v.eval.beam.BeamDecoder", "beam": 0}, {"letters": LETTERS}, key="decoder")
    with pytest.raises(FileNotFoundError, match=r"lm=/nowhere"):
        BeamDecoder(LETTERS, lm="/nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"CAT C A T |\nfoo f o o |\n", r"lexicon\.txt:2: foo is spelled with f o, but the model's letters are ' A B"),
        (b"CAT C A T |\n\nCUT C U T |\n", r"lexicon\.txt:2: '' spells no word; write 'CAT C A T \|'"),
        (b"CAT\n", r"lexicon\.txt:1: 'CAT' spells no word"),
        (b"CAT C A <blank> T |\n", r"lexicon\.txt:1: CAT is spelled with <blank>"),
        ("CAT C A T |\nCAFÉ C A F É |\n".encode("latin-1"), r"lexicon\.txt:2: .*; write the file in UTF-8"),
        (b"", "nothing is in it"),
    ],
)
def test_a_lexicon_of_other_letters_is_named_by_line(tmp_path: Path, text: bytes, message: str) -> None:
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_bytes(text)
    with pytest.raises(ValueError, match=rf"^lexicon.*{message}"):
        BeamDecoder(LETTERS, lexicon=str(lexicon))


@pytest.mark.parametrize("text", ["", "hello world\n", "\\data\\\nngram 1=2\n\n\\1-grams:\n-1.0\t<unk>\n"])
def test_a_broken_language_model_is_named(tmp_path: Path, text: str) -> None:
    model = tmp_path / "lm.arpa"
    model.write_text(text)
    with pytest.raises(ValueError, match=rf"lm={model}: KenLM cannot read it \((.|\n)*give an n-gram model"):
        BeamDecoder(LETTERS, lm=str(model))
