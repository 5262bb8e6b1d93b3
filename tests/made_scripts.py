"""Scripts and benchmarks as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from headwise.commands.arguments import Parser
from made_networks import REPO

SCRIPTS = REPO / "scripts"
COMMANDS: dict[str, Path] = {
    file.stem: file
    for folder in (SCRIPTS, REPO / "benchmarks")
    for file in sorted(folder.glob("*.py"))
    if "__main__" in file.read_text(encoding="utf-8")
}
"""Every file with a command line, by name."""


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", COMMANDS[name])
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if (folder := str(COMMANDS[name].parent)) not in sys.path:
        sys.path.append(folder)  # as Python does where the file is run: some benchmarks share a module
    spec.loader.exec_module(module)
    return module


def started(module: ModuleType, words: list[str]) -> int:
    """Exit status of a command, whether it returns it or leaves."""
    try:
        return getattr(module, "command", module.main)(words)
    except SystemExit as left:  # argparse's
        return int(left.code or 0)


class Seen(BaseException):
    """Raised in place of reading a command line."""


def parser_of(module: ModuleType) -> Parser:
    """The parser that a command builds."""
    seen: list[Parser] = []

    def see(parser: Parser, *_: object) -> None:
        seen.append(parser)
        raise Seen

    usual, Parser.parse_known_args = Parser.parse_known_args, see
    try:
        started(module, [])
    except Seen:
        pass
    finally:
        Parser.parse_known_args = usual
    return seen[0]
