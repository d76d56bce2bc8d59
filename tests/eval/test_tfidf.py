import math

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from d2v.eval import tfidf
from d2v.eval.linear import split_stratified
from d2v.eval.tfidf import tfidf_knn, tfidf_linear

COMMON = [f"common{i}" for i in range(30)]


def texts(num_texts: int, seed: int, num_classes: int = 3, hints: int = 1) -> tuple[list[str], Tensor]:
    """Mostly common words, and ``hints`` of the few that tell a text's class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(num_classes, size=num_texts)
    words = [[*rng.choice(COMMON, 5), *(f"word{c}x{rng.integers(3)}" for _ in range(hints))] for c in y]
    return [" ".join(rng.permutation(line)) for line in words], torch.from_numpy(y)


def test_both_beat_chance_and_find_nothing_in_common_words() -> None:
    train, val = texts(200, 1), texts(150, 2)
    assert tfidf_linear(*train, *val).accuracy > 0.95
    assert tfidf_knn(*train, *val) > 0.6
    train, val = texts(200, 1, hints=0), texts(150, 2, hints=0)
    assert abs(tfidf_linear(*train, *val).accuracy - 1 / 3) < 0.12
    assert abs(tfidf_knn(*train, *val) - 1 / 3) < 0.12


def test_one_text_a_class_is_enough() -> None:
    train = (["red apple", "green leaf", "blue sky"], torch.arange(3))
    assert tfidf_linear(*train, ["apple", "the sky", "leaf"], torch.tensor([0, 2, 1])).accuracy == 1


def test_one_class_is_not() -> None:
    with pytest.raises(ValueError, match="at least two classes, the 2 training samples have one"):
        tfidf_linear(["a b", "b c"], torch.zeros(2).long(), ["a"], torch.zeros(1).long())


def test_one_neighbour_is_the_text_of_highest_cosine() -> None:
    (train, y), (val, val_y) = texts(80, 1), texts(60, 2)
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+").fit(train)
    similarity = vectorizer.transform(val).toarray() @ vectorizer.transform(train).toarray().T
    expected = (y.numpy()[similarity.argmax(1)] == val_y.numpy()).mean()
    assert tfidf_knn(train, y, val, val_y, k=1) == pytest.approx(expected, abs=1 / 60)
    assert expected < 1


def test_how_rare_a_word_is_only_the_training_texts_say() -> None:
    train, y = ["b x", "c x", "c x", "c x"], torch.tensor([0, 1, 1, 1])
    for others in (0, 50):  # in which b is frequent
        assert tfidf_knn(train, y, ["b c", *["b"] * others], torch.zeros(1 + others), k=1) == 1


def test_many_texts_are_classified_in_parts() -> None:
    train, (val, val_y) = texts(40, 1), texts(600, 2)
    parts = [tfidf_knn(*train, val[i : i + 100], val_y[i : i + 100]) for i in range(0, 600, 100)]
    assert tfidf_knn(*train, val, val_y) == pytest.approx(sum(parts) / 6)


def test_more_neighbours_than_texts_are_all_of_them() -> None:
    train, val = texts(15, 1), texts(40, 2)
    assert tfidf_knn(*train, *val, k=1000) == tfidf_knn(*train, *val, k=15)


def test_matches_scikit_learn_at_a_given_strength() -> None:
    (train, y), (val, val_y) = texts(80, 1, hints=2), texts(60, 2)
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+").fit(train)
    model = LogisticRegression(C=0.3, max_iter=300).fit(vectorizer.transform(train), y.numpy())
    assert tfidf_linear(train, y, val, val_y, (0.3,)).accuracy == model.score(vectorizer.transform(val), val_y.numpy())


def test_the_strength_is_chosen_without_the_validation_texts() -> None:
    train, (val, val_y) = texts(100, 1), texts(100, 2)
    weak, strong = (tfidf_linear(*train, val, val_y, (c,)).accuracy for c in (10.0, 1e-6))
    assert weak > strong + 0.2
    chosen = tfidf_linear(*train, val, val_y, (1e-6, 10.0))
    assert chosen == tfidf_linear(*train, val, val_y, (10.0, 1e-6))
    assert (chosen.accuracy, chosen.c, chosen.converged, chosen.edge) == (weak, 10.0, True, "largest")
    # Where the validation labels are all wrong, knowing them would choose the strong one.
    weak, strong = (tfidf_linear(*train, val, (val_y + 1) % 3, (c,)).accuracy for c in (10.0, 1e-6))
    assert strong > weak
    assert tfidf_linear(*train, val, (val_y + 1) % 3, (1e-6, 10.0)).accuracy == weak


def test_labels_need_not_be_consecutive_nor_words_known() -> None:
    (train, y), (val, val_y) = texts(100, 1), texts(60, 2)
    for probe in (lambda *data: tfidf_linear(*data).accuracy, tfidf_knn):
        assert probe(train, y * 7 + 3, val, val_y * 7 + 3) == probe(train, y, val, val_y)
        assert probe(train, y, val, val_y + 50) == 0
        assert 0 <= probe(train, y, ["quite new words", "", "?!"], torch.tensor([0, 1, 2])) <= 1


def test_short_words_and_other_scripts_count() -> None:
    train = [*["a x"] * 5, *["a 猫"] * 5]
    y = torch.tensor([0] * 5 + [1] * 5)
    for probe in (lambda *data: tfidf_linear(*data).accuracy, tfidf_knn):
        assert probe(train, y, ["x", "猫", "X!"], torch.tensor([0, 1, 0])) == 1


def test_words_weigh_by_the_logarithm_of_their_count_and_by_their_rarity() -> None:
    x, _ = tfidf._vectors(["a a a b", "a c"], ["b"])
    a, b, _ = x.toarray()[0]
    rarity = math.log(3 / 2) + 1  # of b, which is in one of two texts; that of a is 1
    assert a / b == pytest.approx((1 + math.log(3)) / rarity)


def test_the_held_out_texts_have_no_part_in_the_words_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[list[str]] = []
    vectors = tfidf._vectors
    monkeypatch.setattr(tfidf, "_vectors", lambda train, val: (fitted.append(list(train)), vectors(train, val))[1])
    (train, y), val = texts(100, 1), texts(20, 2)
    tfidf_linear(train, y, *val, seed=4)
    held_out = split_stratified(y.numpy(), 4)
    assert fitted == [[text for text, out in zip(train, held_out, strict=True) if not out], train]
