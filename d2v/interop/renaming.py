"""Two-way tables of parameter names between models of other libraries and d2v."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_FIELD = re.compile(r"\{(\w+)(\+1)?\}")


class Rule(NamedTuple):
    """Rule for a parameter, or for several of the same form.

    Attributes:
        theirs: name in the other library; ``{n}`` is a number, ``{n+1}`` the next one, ``{p}`` "weight" or "bias".
        ours: name in d2v, in the same form; ``[0]``, ``[1]`` or ``[2]`` at the end is a third of it, in dimension 0.
        unit_dims: dimensions of size 1 that only the other library's parameter has.
    """

    theirs: str
    ours: str
    unit_dims: tuple[int, ...] = ()


class Renaming:
    """Two-way table between models with the same parameters under different names.

    Args:
        rules: rules for all parameters; the first match counts.
        ignored: patterns of names in the other library that are no parameters; neither read nor written.
    """

    def __init__(self, rules: Iterable[Rule], ignored: Iterable[str] = ()) -> None:
        self.rules = list(rules)
        self.ignored = [re.compile(pattern) for pattern in ignored]

    def read(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a state dict to our names. The bias of attention keys, which has no effect, may be missing.

        Raises:
            KeyError: no rule matches a name, or a part is missing; the message names it.
        """
        renamed: dict[str, Tensor] = {}
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
            place, key = (parts.setdefault(whole, {}), int(part[0])) if part else (renamed, whole)
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
            renamed[whole] = torch.cat([thirds[i] for i in range(3)])
        return renamed

    def write(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a state dict to the names of the other library.

        Raises:
            KeyError: no rule matches a name; the message names it.
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
    """Return ``name`` in the form of ``target`` if it has the form of ``source``, else None."""
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
