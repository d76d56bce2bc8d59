"""Tables of parameter names: one says how somebody else's model is read as ours and ours is written as theirs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_FIELD = re.compile(r"\{(\w+)(\+1)?\}")


class Rule(NamedTuple):
    """A parameter, or many of the same form.

    Attributes:
        theirs: name; ``{n}`` stands for a number, ``{n+1}`` for the next one, ``{p}`` for "weight" or "bias".
        ours: our name, in the same form; ``[0]``, ``[1]`` or ``[2]`` at its end is a third of it, in dimension 0.
        unit_dims: dimensions of size 1 that theirs has and ours has not.
    """

    theirs: str
    ours: str
    unit_dims: tuple[int, ...] = ()


class Renaming:
    """Two-way table between models with the same parameters under other names.

    Args:
        rules: of every parameter; the first that matches counts.
        ignored: patterns of their names that hold nothing of a model: left out, and not written.
    """

    def __init__(self, rules: Iterable[Rule], ignored: Iterable[str] = ()) -> None:
        self.rules = list(rules)
        self.ignored = [re.compile(pattern) for pattern in ignored]

    def read(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Theirs as ours. Of a bias of three parts, the second (the attention's keys, which it cannot change) may lack.

        Raises:
            KeyError: naming what no rule knows, or what lacks a part.
        """
        found: dict[str, Tensor] = {}
        parts: dict[str, dict[int, Tensor]] = {}
        unknown = []
        for name, value in state.items():
            if any(pattern.fullmatch(name) for pattern in self.ignored):
                continue
            for rule in self.rules:
                ours = _translate(name, rule.theirs, rule.ours)
                if ours is not None:
                    break
            else:
                unknown.append(name)
                continue
            ours_value = value
            for dim in reversed(rule.unit_dims):
                ours_value = ours_value.squeeze(dim)
            whole, _, part = ours.partition("[")
            place, key = (parts.setdefault(whole, {}), int(part[0])) if part else (found, whole)
            if key in place:
                raise KeyError(f"{name}: another parameter is {ours}, too")
            place[key] = ours_value  # type: ignore[index]  # keys of either kind go with their place
        if unknown:
            raise KeyError(f"{', '.join(unknown[:5])}: {len(unknown)} parameters that are not part of such a model")
        for whole, thirds in parts.items():
            if 1 not in thirds and whole.endswith("bias") and 0 in thirds:
                thirds[1] = torch.zeros_like(thirds[0])
            if sorted(thirds) != [0, 1, 2]:
                raise KeyError(f"{whole}: of its three parts there are only {sorted(thirds)}")
            found[whole] = torch.cat([thirds[i] for i in range(3)])
        return found

    def write(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours as theirs.

        Raises:
            KeyError: naming what no rule knows.
        """
        written: dict[str, Tensor] = {}
        unknown = []
        for name, value in state.items():
            known = False
            for rule in self.rules:
                whole, _, part = rule.ours.partition("[")
                theirs = _translate(name, whole, rule.theirs)
                if theirs is None or theirs in written:
                    continue
                known = True
                written[theirs] = value.chunk(3)[int(part[0])] if part else value
                for dim in rule.unit_dims:
                    written[theirs] = written[theirs].unsqueeze(dim)
                if not part:
                    break
            if not known:
                unknown.append(name)
        if unknown:
            raise KeyError(f"{', '.join(unknown[:5])}: {len(unknown)} parameters that such a model has no place for")
        return written


def _translate(name: str, source: str, target: str) -> str | None:
    """``name`` in the form of ``target`` if it has that of ``source``, else None."""
    pattern, end = "", 0
    for field in _FIELD.finditer(source):
        pattern += re.escape(source[end : field.start()])
        pattern += f"(?P<{field[1]}>{'weight|bias' if field[1] == 'p' else '[0-9]+'})"
        end = field.end()
    match = re.fullmatch(pattern + re.escape(source[end:]), name)
    if match is None:
        return None
    values: dict[str, str] = match.groupdict()
    for field in _FIELD.finditer(source):
        if field[2]:
            values[field[1]] = str(int(values[field[1]]) - 1)

    def fill(field: re.Match[str]) -> str:
        value = values[field[1]]
        return str(int(value) + 1) if field[2] else value

    return _FIELD.sub(fill, target)
