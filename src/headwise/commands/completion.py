"""Completion: what could stand where the cursor is, for bash, zsh and fish.

Hydra's own completes neither options of packages (``method@method.first=``) nor options in folders (``method=peft/``),
and its script for bash loses a word at ``@``. Nothing but hydra is imported: a shell waits for the answer.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headwise.commands.overrides import GROUPS, OF_METHODS, PATHS, readable
from headwise.commands.shared import choices_on_demand
from headwise.errors import HeadwiseError

FLAGS = ("-sc", "--shell-completion")
HELP_ALL = "--help-all"
FAILURES = (HydraException, OmegaConfBaseException, HeadwiseError, ValueError, OSError, SystemExit)
"""What a line that is not finished yet may raise."""

BASH = r"""
_headwise() {
    case ${COMP_WORDS[1]} in train.py|*/train.py) ;; *) return ;; esac
    # another project's train.py would be run by a mere TAB
    grep -qs 'headwise\.commands' -- "${COMP_WORDS[1]}" || return
    local IFS=$'\n' line=${COMP_LINE:0:COMP_POINT}
    local word=${line##*[[:space:]]}
    COMPREPLY=($(COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT "${COMP_WORDS[@]:0:2}" -sc query=bash 2>/dev/null))
    # bash replaces only what follows the last of its separators, such as @ and =
    COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*["$COMP_WORDBREAKS"]}"}"}")
}
complete -o nospace -o default -F _headwise python python3
"""
ZSH = r"""
_headwise() {
    [[ ${words[2]:t} == train.py ]] && grep -qs 'headwise\.commands' -- ${(Q)words[2]} || { _default; return }
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX"
    local -a found
    found=(${(f)"$(COMP_LINE=$line COMP_POINT=${#line} ${(Q)words[1]} ${(Q)words[2]} -sc query=zsh 2>/dev/null)"})
    compadd -Q -S '' -a found
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _headwise python python3
"""
FISH = r"""
function __headwise
    set -l words (commandline -opc)
    set -lx COMP_LINE (commandline -cp)
    grep -qs 'headwise\.commands' -- $words[2]; or return
    $words[1] $words[2] -sc query=fish 2>/dev/null
end
for program in python python3
    complete -c $program -f -n 'string match -qr "(^|/)train.py\$" -- (commandline -opc)[2]' -a '(__headwise)'
end
"""
INSTALL = {"bash": BASH, "zsh": ZSH, "fish": FISH}
UNINSTALL = {
    "bash": "complete -r python python3; unset -f _headwise",
    "zsh": "compdef -d python python3; unfunction _headwise",
    "fish": "complete -e -c python; complete -e -c python3; functions -e __headwise",
}


def answered(argv: Sequence[str] | None = None) -> bool:
    """Answer a shell, if it asks: ``-sc install=SHELL``, ``uninstall=SHELL`` and ``query=SHELL``.

    A query reads the line from the environment (``COMP_LINE``, and ``COMP_POINT`` where the cursor is not at its end),
    as bash gives it, and prints what could stand there, one to a line.

    Args:
        argv: the program, and its words; None: those of this process. conf/ is looked for beside the program.

    Returns:
        Whether it was asked for; anything else, and what is none of these, is left to others.
    """
    argv = sys.argv if argv is None else argv
    if len(argv) != 3 or argv[1] not in FLAGS:
        return False
    work, _, shell = argv[2].partition("=")
    if shell not in INSTALL:
        return False
    if work in ("install", "uninstall"):
        print((INSTALL if work == "install" else UNINSTALL)[shell].strip())
        return True
    if work != "query":
        return False
    line = os.environ.get("COMP_LINE", "")
    point = os.environ.get("COMP_POINT", "")
    line = line[: int(point)] if point.isdecimal() else line
    print("\n".join(candidates(Path(argv[0]), line)))
    return True


def candidates(program: Path, line: str) -> list[str]:
    """What the last word of a line could be, sorted; nothing where the line cannot be read.

    Args:
        program: train.py, beside which conf/ lies.
        line: up to the cursor, the program included.
    """
    words = _words(line)
    names = [Path(word).name for word in words]
    if program.name not in names:
        return []
    *before, word = words[names.index(program.name) + 1 :] or [""]
    try:
        return sorted({found for found in _Completer(program, before).all(word) if found.startswith(word)})
    except FAILURES:
        return []


def _words(line: str) -> list[str]:
    """The words of a line; the last is empty where the cursor stands behind a blank."""
    try:
        words = shlex.split(line)
    except ValueError:  # quotes that are not closed yet
        words = line.split()
    return [*words, ""] if line[-1:].isspace() else words


class _Completer:
    """Candidates for the word behind others.

    Args:
        program: train.py.
        before: words of the line in front of the cursor.
    """

    def __init__(self, program: Path, before: Sequence[str]) -> None:
        self.parser = get_args_parser()
        self.parser.error = _no_words  # type: ignore[assignment, method-assign]
        known, more = self.parser.parse_known_args([word for word in before if word != HELP_ALL])
        path = create_config_search_path(str(program.resolve().parent / (known.config_path or "conf")))
        if known.config_dir:
            path.prepend("command-line", f"file://{Path(known.config_dir).resolve()}", SearchPathQuery("schema", None))
        self.loader = ConfigLoaderImpl(path)
        self.name = known.config_name or "config"
        self.chosen = list(self._single([*known.overrides, *more]))
        self.config = self._composed()

    def all(self, word: str) -> Iterable[str]:
        """Everything that may begin with the word."""
        if word.startswith("-"):
            return [*(flag for action in self.parser._actions for flag in action.option_strings), HELP_ALL]
        sign = word[: len(word) - len(word.lstrip("+~"))]
        key, equals, value = word.removeprefix(sign).partition("=")
        if not equals:
            names = (name for name in self._keys(key, bool(sign)) if key or not name.startswith("hydra"))
            return [f"{sign}{name}" for name in names]
        done, _, last = value.rpartition(",")  # the values of a sweep
        front = f"{sign}{key}={done}," if done else f"{sign}{key}="
        return [f"{front}{found}" for found in self._values(key, last)]

    def _keys(self, key: str, adds: bool) -> Iterator[str]:
        """Keys and groups: a node ends in a dot, all others in =; those of hydra only for who has begun to type one."""
        above, dot, _ = key.rpartition(".")
        node = _node(self.config, above) if above else self.config
        if isinstance(node, DictConfig):
            for name in map(str, node):
                yield f"{above}{dot}{name}{'.' if isinstance(node._get_node(name), DictConfig) else '='}"
        yield from (f"{group}=" for group in self.config.hydra.runtime.choices)
        if adds:
            yield from (f"{group}@{place}=" for group in OF_METHODS for place in self._places(group))

    def _values(self, key: str, value: str) -> Iterator[str]:
        """Options of a group, files below a path, or what a key may be."""
        group = key.partition("@")[0]
        if group.partition("/")[0] in (*GROUPS, "hydra"):
            yield from self._options(group, value.rpartition("/")[0])
        if any(fnmatchcase(key, pattern) for pattern in PATHS):
            yield from _files(value)
            return
        if (name := key.rpartition(".")[2]) in OF_METHODS:
            yield from self._options(name, "")
        found = _node(self.config, key)
        if isinstance(found, bool):
            yield from ("false", "true")
        elif isinstance(found, int | float | str):
            yield str(found)

    def _options(self, group: str, folder: str) -> Iterator[str]:
        """Options in a folder of a group, and the folders there, as ``peft/``."""
        front = f"{folder}/" if folder else ""
        place = f"{group}/{folder}".rstrip("/")
        yield from (f"{front}{name}" for name in self._listed(place, ObjectType.CONFIG))
        yield from (f"{front}{name}/" for name in self._listed(place, ObjectType.GROUP))

    def _listed(self, place: str, kind: ObjectType) -> list[str]:
        return self.loader.get_group_options(place, kind, config_name=self.name, overrides=self.chosen)

    def _places(self, name: str) -> Iterator[str]:
        """Fields of that name, of the method and of those in it."""
        method = self.config.get("method")
        nodes = {"method": method, **{f"method.{key}": node for key, node in (method or {}).items()}}
        yield from (f"{key}.{name}" for key, node in nodes.items() if isinstance(node, Mapping) and "targets" in node)

    def _single(self, words: Sequence[str]) -> Iterator[str]:
        """Words that can be composed as they stand: of a sweep's values the first, and nothing that is unfinished."""
        parser: Any = OverridesParser.create()
        for word in readable([word for word in words if "=" in word], sweeps=True):
            try:
                parsed: Override = parser.parse_override(word)
            except HydraException:
                continue
            value: Any = parsed.value()
            if isinstance(value, ChoiceSweep):
                yield f"{word.partition('=')[0]}={value.list[0]}"
            elif not parsed.is_sweep_override():
                yield word

    def _composed(self) -> DictConfig:
        """The configuration of what is chosen; without the choices if they cannot be composed yet."""
        for chosen in (self.chosen, []):
            try:
                with choices_on_demand():
                    return self.loader.load_configuration(self.name, list(chosen), RunMode.RUN)
            except (HydraException, OmegaConfBaseException):
                self.chosen = []
        raise ValueError("there is no configuration")


def _no_words(message: str) -> Any:
    raise ValueError(message)


def _node(config: DictConfig, key: str) -> Any:
    """The value of a key, None where there is none or it is not given."""
    return OmegaConf.select(config, key, throw_on_resolution_failure=False)


def _files(value: str) -> Iterator[str]:
    """Files and folders that a path may go on to, folders with a slash at their end."""
    above, slash, _ = value.rpartition("/")
    folder = Path(f"{above}{slash}" or ".").expanduser()
    if folder.is_dir():
        yield from (f"{above}{slash}{entry.name}{'/' if entry.is_dir() else ''}" for entry in folder.iterdir())
