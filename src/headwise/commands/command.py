"""The command line: what is typed made readable, and every failure one line and a status."""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from headwise.commands.completion import HELP_ALL
from headwise.commands.messages import one_line, text_of
from headwise.commands.overrides import GROUPS, readable
from headwise.commands.shared import install
from headwise.errors import ConfigError, Interrupted, SweepError, suggest
from headwise.schema.secret import refuse_secrets

WORKS = {"run": "--run", "multirun": "-m", "cfg": "--cfg", "info": "--info", "shell_completion": "--shell-completion"}
"""What hydra does in place of each other, by the names of its flags."""
COMPLETION = r"(install|uninstall|query)=(bash|fish|zsh)"
"""What `headwise.commands.completion` has answered, where it is given alone."""


class Failed(BaseException):
    """Carries the error of a run past hydra."""


def launch(main: Callable[[], Any]) -> None:
    """Run a hydra main; whatever goes wrong becomes one line that begins with ``error:`` and a status that is not 0.

    With ``HEADWISE_TRACEBACK=1`` in the environment the traceback is printed as well.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a folder's name may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.argv[1:] = readable(_in_order(sys.argv[1:]))
        refuse_secrets(None, sys.argv[1:])  # nothing prints them, hydra neither
        install()
        main()
    except Failed as failed:
        sys.exit(_told(failed.__cause__ or failed))
    except (KeyboardInterrupt, Exception) as error:
        sys.exit(_told(error))


def _told(error: BaseException) -> int:
    """Print an error; returns the status of the process."""
    if os.environ.get("HEADWISE_TRACEBACK") == "1":
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt | Interrupted):
        print(f"\n{text_of(error) or 'stopped by the user: run the same command to resume'}", file=sys.stderr)
        return 130
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", []))
    text = text_of(error) if isinstance(error, SweepError) else one_line(error, limit=None)
    print(f"error: {text}{notes}", file=sys.stderr)
    return 1


def _in_order(words: Sequence[str]) -> list[str]:
    """Flags before choices, as hydra wants them (a user may type ``method=lora -m seed=0,1``); refuses wrong ones."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(message)

    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument(HELP_ALL, action="store_true")
    if "--version" in words:
        return list(words)
    flags_given, late = parser.parse_known_args(list(words))
    if wrong := next((word for word in late if word.startswith("-")), None):
        name = wrong.lstrip("-").partition("=")[0]
        if name.partition(".")[0] in GROUPS:
            raise ConfigError(f"unknown flag {wrong!r}; choices have no dashes: {name}=VALUE")
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        raise ConfigError(f"unknown flag {wrong!r}{suggest(wrong, flags)}")
    choices = [*flags_given.overrides, *late]
    _check_flags(flags_given, choices)
    flags = [word for word in words if word not in choices]
    if flags_given.help_all or (flags_given.help and (choices or flags_given.resolve)):
        # one screen would leave out what was chosen
        page = [] if any(word.startswith("hydra/help=") for word in choices) else ["hydra/help=all"]
        return [*(word for word in flags if word != HELP_ALL), "--help", *choices, *page]
    return [*flags, *choices]


def _check_flags(given: Namespace, choices: Sequence[str]) -> None:
    """Refuse what hydra would answer with an error of Python, and the flag with which it unpickles a file."""
    if given.experimental_rerun is not None:
        raise ConfigError(
            "--experimental-rerun is not offered: it reads a pickle, which may run any code; give the command again"
        )
    chosen = [flag for name, flag in WORKS.items() if getattr(given, name)]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other; give one of them")
    if given.hydra_help and choices:
        raise ConfigError(f"--hydra-help takes no choices, got {choices[0]}; --help takes them")
    if given.resolve and not (given.cfg or given.help or given.help_all):
        raise ConfigError("--resolve belongs to --cfg or --help: --cfg job --resolve")
    if given.shell_completion and not (len(choices) == 1 and re.fullmatch(COMPLETION, choices[0])):
        raise ConfigError("--shell-completion takes one of install, uninstall and query, with a shell: install=bash")
