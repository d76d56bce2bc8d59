"""Tables of names: what a rule says, what lacks, and that nothing is lost on the way there and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2v.interop.renaming import Renaming, Rule

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def tensors(*names: str) -> dict[str, Tensor]:
    return {name: torch.randn(6, 2) for name in names}


def names(rules: list[Rule], *theirs: str) -> list[str]:
    """Our names for theirs, after a look that they are written back."""
    renaming, state = Renaming(rules), tensors(*theirs)
    ours = renaming.read(state)
    written = renaming.write(ours)
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], value) for name, value in state.items())
    return list(ours)


def test_a_plain_rule_is_the_whole_name() -> None:
    rules = [Rule("a.b", "c")]
    assert names(rules, "a.b") == ["c"]
    for stranger in ("a.b.c", "xa.b", "a_b", "a.", "A.b", "c", "a.b\n"):
        with pytest.raises(KeyError):
            Renaming(rules).read(tensors(stranger))


def test_numbers_and_weight_or_bias_are_carried_over() -> None:
    rules = [Rule("layers.{n}.fc.{p}", "blocks.{n}.mlp.{p}")]
    assert names(rules, "layers.0.fc.weight", "layers.117.fc.bias") == ["blocks.0.mlp.weight", "blocks.117.mlp.bias"]
    for stranger in ("layers.x.fc.weight", "layers.1.fc.gamma", "layers..fc.bias", "layers.-1.fc.bias"):
        with pytest.raises(KeyError):
            Renaming(rules).read(tensors(stranger))


def test_fields_may_change_places_and_be_many() -> None:
    rules = [Rule("{p}.{a}.{b}", "x.{b}.y.{a}.{p}")]
    assert names(rules, "bias.3.14") == ["x.14.y.3.bias"]


@pytest.mark.parametrize(
    ("rule", "theirs", "ours"),
    [
        (Rule("p.{n+1}.0", "q.{n}"), "p.1.0", "q.0"),
        (Rule("p.{n+1}.0", "q.{n}"), "p.10.0", "q.9"),
        (Rule("p.{n}", "q.{n+1}"), "p.9", "q.10"),
        (Rule("p.{n+1}", "q.{n+1}"), "p.5", "q.5"),
    ],
)
def test_a_number_may_be_the_next_one(rule: Rule, theirs: str, ours: str) -> None:
    assert names([rule], theirs) == [ours]


def test_dots_and_other_signs_stand_for_themselves() -> None:
    assert names([Rule("a+b(c).{n}", "d.{n}")], "a+b(c).1") == ["d.1"]
    with pytest.raises(KeyError):
        Renaming([Rule("a.b", "c")]).write(tensors("d"))


def test_the_first_rule_that_matches_counts() -> None:
    rules = [Rule("a.0.{p}", "first.{p}"), Rule("a.{n}.{p}", "second.{n}.{p}")]
    assert names(rules, "a.0.bias", "a.1.bias") == ["first.bias", "second.1.bias"]


def test_one_of_two_names_is_written_the_first() -> None:
    renaming, value = Renaming([Rule("new.{p}", "ours.{p}"), Rule("old.{p}", "ours.{p}")]), torch.randn(2)
    for theirs in ("new.bias", "old.bias"):
        assert list(renaming.write(renaming.read({theirs: value}))) == ["new.bias"]


THIRDS = [Rule(f"{x}.{{n}}.{{p}}", f"qkv.{{n}}.{{p}}[{i}]") for i, x in enumerate("qkv")]


def test_three_parts_are_one_in_their_order_whatever_the_order_of_the_state() -> None:
    state = tensors("v.0.weight", "k.0.weight", "q.0.weight", "k.1.weight", "q.1.weight", "v.1.weight")
    ours = Renaming(THIRDS).read(state)
    assert ours.keys() == {"qkv.0.weight", "qkv.1.weight"}
    for n in (0, 1):
        assert torch.equal(ours[f"qkv.{n}.weight"], torch.cat([state[f"{x}.{n}.weight"] for x in "qkv"]))
    written = Renaming(THIRDS).write(ours)
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], value) for name, value in state.items())


def test_a_bias_may_lack_its_second_part_which_is_then_zero() -> None:
    state = tensors("q.0.bias", "v.0.bias")
    ours = Renaming(THIRDS).read(state)["qkv.0.bias"]
    assert torch.equal(ours, torch.cat([state["q.0.bias"], torch.zeros(6, 2), state["v.0.bias"]]))
    assert ours.dtype == state["q.0.bias"].dtype


@pytest.mark.parametrize(
    ("present", "parts"),
    [
        (["q.0.weight", "v.0.weight"], "[0, 2]"),  # a weight may not
        (["q.0.bias", "k.0.bias"], "[0, 1]"),
        (["k.0.bias", "v.0.bias"], "[1, 2]"),
        (["q.0.bias"], "[0, 1]"),
        (["v.0.bias"], "[2]"),
        (["q.0.weight"], "[0]"),
    ],
)
def test_other_missing_parts_are_named(present: list[str], parts: str) -> None:
    with pytest.raises(KeyError) as error:
        Renaming(THIRDS).read(tensors(*present))
    assert f"qkv.0.{present[0].rpartition('.')[2]}: of its three parts there are only {parts}" in str(error.value)


def test_a_part_that_they_do_not_have_is_not_written() -> None:
    renaming = Renaming([THIRDS[0], THIRDS[2]])
    value = torch.arange(6.0)
    written = renaming.write({"qkv.4.bias": value})
    assert {name: part.tolist() for name, part in written.items()} == {"q.4.bias": [0, 1], "v.4.bias": [4, 5]}


@pytest.mark.parametrize(
    ("unit_dims", "theirs", "ours"),
    [
        ((0,), (1, 3, 2), (3, 2)),
        ((0,), (1, 1, 2), (1, 2)),  # the other dimension of size 1 stays
        ((1,), (3, 1, 2), (3, 2)),
        ((0, 1), (1, 1, 4), (4,)),
        ((0, 1, 3, 4), (1, 1, 4, 1, 1), (4,)),
        ((0, 1, 3, 4), (1, 1, 1, 1, 1), (1,)),
    ],
)
def test_dimensions_of_size_1_come_and_go(
    unit_dims: tuple[int, ...], theirs: tuple[int, ...], ours: tuple[int, ...]
) -> None:
    renaming, value = Renaming([Rule("a", "b", unit_dims)]), torch.randn(theirs)
    read = renaming.read({"a": value})
    assert read["b"].shape == ours
    written = renaming.write(read)
    assert written["a"].shape == theirs
    assert torch.equal(written["a"], value)


def test_ignored_names_are_left_out_and_not_written() -> None:
    renaming = Renaming([Rule("a.{p}", "b.{p}")], [r".*\.version", r"junk\.[0-9]+"])
    state = tensors("a.bias", "x.y.version", "junk.12")
    ours = renaming.read(state)
    assert list(ours) == ["b.bias"]
    assert list(renaming.write(ours)) == ["a.bias"]
    for stranger in ("x.version.y", "junk.", "versions"):  # the whole name, or nothing
        with pytest.raises(KeyError, match=stranger):
            renaming.read(tensors(stranger))


def test_unknown_names_are_named_all_at_once_but_no_more_than_five() -> None:
    renaming = Renaming([Rule("a", "b")])
    with pytest.raises(KeyError) as error:
        renaming.read(tensors("a", "c", "d"))
    assert "c, d: 2 parameters that are not part of such a model" in str(error.value)
    with pytest.raises(KeyError) as error:
        renaming.read(tensors("a", *"cdefgh"))
    assert "'c, d, e, f, g: 6 parameters that are not part of such a model" in str(error.value)
    with pytest.raises(KeyError) as error:
        renaming.write(tensors("b", *"cdefgh"))
    assert "c, d, e, f, g: 6 parameters that such a model has no place for" in str(error.value)
    with pytest.raises(KeyError, match="b: 1 parameters"):
        renaming.read(tensors("b"))  # ours is not theirs


def test_nothing_is_nothing_and_the_state_stays_as_it_is() -> None:
    renaming = Renaming([*THIRDS, Rule("a", "b", (0,))])
    assert renaming.read({}) == {}
    assert renaming.write({}) == {}
    state = {"a": torch.randn(1, 3), **tensors("q.0.weight", "k.0.weight", "v.0.weight")}
    before = {name: value.clone() for name, value in state.items()}
    renaming.write(renaming.read(state))
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], value) for name, value in before.items())


MIXED = Renaming(
    [
        *THIRDS,
        Rule("lone", "single", (0,)),
        Rule("conv.{n+1}.0.{p}", "convs.{n}.{p}", (1,)),
        Rule("deep.{a}.mid.{b}.{p}", "turned.{b}.{a}.{p}"),
    ]
)
number = st.integers(0, 120)
kind = st.sampled_from(["weight", "bias"])
entry = st.one_of(
    st.just(("lone",)),
    st.tuples(number, kind).map(lambda a: (f"conv.{a[0] + 1}.0.{a[1]}",)),
    st.tuples(number, number, kind).map(lambda a: (f"deep.{a[0]}.mid.{a[1]}.{a[2]}",)),
    st.tuples(number, kind).map(lambda a: tuple(f"{x}.{a[0]}.{a[1]}" for x in "qkv")),
)


@quick
@given(st.lists(entry, max_size=8), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_any_state_goes_there_and_back(groups: list[tuple[str, ...]], seed: int, random: object) -> None:
    generator = torch.Generator().manual_seed(seed)
    theirs = sorted({name for group in groups for name in group})
    random.shuffle(theirs)  # type: ignore[attr-defined]
    shapes = {"lone": (1, 2), "conv": (2, 1, 3)}
    state = {name: torch.randn(shapes.get(name.split(".")[0], (2, 3)), generator=generator) for name in theirs}
    ours = MIXED.read(state)
    assert sum(value.numel() for value in ours.values()) == sum(value.numel() for value in state.values())
    back = MIXED.write(ours)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())
    again = MIXED.read(back)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], value) for name, value in ours.items())


def test_two_names_for_one_parameter_are_an_error() -> None:
    renaming = Renaming([Rule("a.{p}", "x.{p}"), Rule("b.{p}", "x.{p}")])
    with pytest.raises(KeyError, match=r"another parameter is x\.bias, too"):
        renaming.read({"a.bias": torch.zeros(1), "b.bias": torch.ones(1)})
