"""Shell completion for bash, zsh and fish: commands, groups, options and keys; the shell itself completes files.

The shell calls ``d2v completion words LINE`` with the line up to the cursor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from d2v.cli.commands import COMMANDS, options

SCRIPTS = {
    "bash": r"""_d2v() {
    local line="${COMP_LINE:0:COMP_POINT}" word candidates
    word="${line##*[[:space:]]}"
    mapfile -t candidates < <(d2v completion words "$line" 2>/dev/null)
    # bash breaks words at = and :, and replaces only what follows the last of them
    local prefix="${word%"${word##*[=:]}"}"
    COMPREPLY=("${candidates[@]#"$prefix"}")
    local i
    for i in "${!COMPREPLY[@]}"; do
        case "${COMPREPLY[i]}" in *[=.]) ;; *) COMPREPLY[i]+=" " ;; esac
    done
}
complete -o default -o nospace -F _d2v d2v""",
    "zsh": r"""#compdef d2v
_d2v() {
    local -a candidates
    candidates=("${(@f)$(d2v completion words "${BUFFER[1,CURSOR]}" 2>/dev/null)}")
    [[ -n "$candidates" ]] && compadd -S '' -a candidates || _files
}
compdef _d2v d2v""",
    "fish": r"""complete -c d2v -a '(d2v completion words (commandline -cp) 2>/dev/null)'""",
}
_INSTALL = {
    "bash": 'eval "$(d2v completion bash)"    # in ~/.bashrc',
    "zsh": 'eval "$(d2v completion zsh)"     # in ~/.zshrc, after compinit',
    "fish": "d2v completion fish | source    # in ~/.config/fish/config.fish",
}


def main(arguments: list[str]) -> str | None:
    """Run ``d2v completion``.

    Returns:
        An error message, or None.
    """
    if len(arguments) == 1 and arguments[0] in SCRIPTS:
        print(SCRIPTS[arguments[0]])
    elif len(arguments) == 2 and arguments[0] == "words":
        for word in complete(arguments[1]):
            print(word)
    elif arguments in (["--help"], ["-h"], ["help"]):
        print("d2v completion SHELL: a script that completes d2v's words, to be read by the shell\n")
        print("\n".join(f"  {line}" for line in _INSTALL.values()))
    else:
        return f"d2v completion: give one of {', '.join(SCRIPTS)}"
    return None


def complete(line: str) -> list[str]:
    """Return completions of the last word of a command line; none if only a file name can follow.

    Args:
        line: line from the program's name on; ends with a blank if the next word is empty.
    """
    words = line.split()[1:]
    word = "" if not words or line[-1:].isspace() else words.pop()
    if not words:
        candidates = [*COMMANDS, "help", "completion"]
    elif words == ["help"]:
        candidates = list(COMMANDS)
    elif words == ["completion"]:
        candidates = list(SCRIPTS)
    elif words[0] in COMMANDS:
        row = COMMANDS[words[0]]
        is_action = bool(row.actions) and len(words) == 1
        candidates = list(row.actions) if is_action else list(_of_command(words[0], words[1:], word))
    else:
        candidates = []
    return sorted({name for name in candidates if name.startswith(word)})


def _of_command(command: str, before: list[str], word: str) -> Iterator[str]:
    """Return groups, options, keys and flags of a command."""
    row = COMMANDS[command]
    groups = (*row.groups, *(("experiment",) if row.experiments else ()))
    sign = re.match(r"[+~]*", word)
    prefix = sign[0] if sign else ""
    group, equals, _ = word.removeprefix(prefix).partition("=")
    if equals:
        if group in groups:
            yield from (f"{prefix}{group}={name}" for name in options(group))
        return
    if word.startswith("-"):
        yield from ("--help", "--cfg", "--multirun", "--hydra-help")
        return
    yield from (f"{prefix}{name}{'' if '~' in prefix else '='}" for name in groups)
    yield from (prefix + key for key in _next_keys(command, before, word.removeprefix(prefix)))


def _next_keys(command: str, before: list[str], word: str) -> Iterator[str]:
    """Return keys one level below the prefix: ``optim.`` gives ``optim.lr=``."""
    from d2v.cli.hints import chosen, composed  # only here: they import Hydra

    node, prefix = composed(command, chosen(command, before)), ""
    for part in word.split(".")[:-1]:
        node, prefix = node.get(part) if isinstance(node, dict) else None, f"{prefix}{part}."
    if isinstance(node, dict):
        for key, value in node.items():
            if not str(key).endswith("_") and not (prefix == "" and key in ("hydra", "run_dir")):
                yield f"{prefix}{key}{'.' if isinstance(value, dict) and value else '='}"
