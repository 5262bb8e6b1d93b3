"""What every script shares: errors as text, and an exit status that tells success, runs by name. No torch."""

from __future__ import annotations

import functools
import io
import itertools
import os
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwise.commands.arguments import OutFile, Parser, folder, module, old_file, old_folder, weights
from headwise.errors import ConfigError, HeadwiseError, Interrupted, on_one_line
from headwise.results.reading import ReadResults, read, read_result
from headwise.storage.plain import Misfit, Shape, read_json

REPO = Path(__file__).resolve().parents[2]
"""The checkout whose ``conf`` says which experiments there are."""
Main = Callable[[Sequence[str] | None], int]


def script(main: Main) -> Callable[..., int]:
    """Let a script's main return 1 with ``error: ...`` on stderr for what the user can mend, 130 when stopped.

    ::

        @script
        def main(arguments: Sequence[str] | None = None) -> int: ...

        if __name__ == "__main__":
            sys.exit(main())
    """

    @functools.wraps(main)
    def guarded(arguments: Sequence[str] | None = None) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what the terminal cannot show
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            if sys.stdout is None:
                raise ConfigError(
                    "standard output is closed, so the answer would be lost; > FILE or > /dev/null opens it"
                )
            _check_words(sys.argv[1:] if arguments is None else arguments)
            return main(arguments)
        except (KeyboardInterrupt, Interrupted) as error:
            print(f"\n{str(error) or 'stopped by the user'}", file=sys.stderr)
            return 130
        except HeadwiseError as error:
            print(f"error: {on_one_line(str(error))}", file=sys.stderr)
            return 1
        except BrokenPipeError:  # whoever read the output has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
            print(f"error: {on_one_line(f'{where}{error.strerror or error}')}", file=sys.stderr)
            return 1

    return guarded


def _check_words(words: Sequence[str]) -> None:
    """Refuse what no file and no run may be called; an empty path would be the working folder.

    Raises:
        ConfigError: naming the option before an empty word.
    """
    for before, word in itertools.pairwise(["", *words]):
        if "\0" in word:
            raise ConfigError(f"{word!r} holds a zero byte, which no name may hold")
        if not word.strip() or re.fullmatch(r"--[a-z-]+=\s*", word):
            option = word.strip() or (before if before.startswith("--") else "an argument")
            raise ConfigError(f"{option.rstrip('=')} is empty; leave it out, or give it a value")


def exclusive(given: Mapping[str, object], why: str) -> None:
    """Refuse options that would mean nothing.

    Args:
        given: values by option; None and False for those that were not given.
        why: they mean nothing.

    Raises:
        ConfigError: naming the first that was given.
    """
    for name, value in given.items():
        if value is not None and value is not False:
            raise ConfigError(f"{name}{'' if value is True else f' {value}'} means nothing {why}; leave it out")


def force_option(parser: Parser) -> None:
    """The option of every script that writes a file, see `headwise.commands.written.writing`."""
    parser.add_argument("--force", action="store_true", help="replace files, even those that this tool did not write")


def of_results(description: str | None, epilog: str | None = None, *, writes: bool = True) -> Parser:
    """The options of a script that reads finished runs by their name.

    Args:
        description, epilog: of its help.
        writes: whether it writes files of its own and so has ``--force``.
    """
    parser = Parser(description=description, epilog=epilog, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=folder, default=Path("outputs"), help="where results lie (outputs)")
    if writes:
        force_option(parser)
    return parser


def results_of(root: Path, name: str | None, otherwise: str = "it counts as missing") -> ReadResults:
    """The finished runs of an experiment, or all below `root`; what cannot be read is told on stderr.

    Args:
        root: of all results.
        name: of the runs; None for all.
        otherwise: what becomes of a damaged record.
    """
    records = read(root, name, REPO)
    for path in records.damaged:
        print(f"warning: {root / path} is not a usable record; {otherwise}", file=sys.stderr)
    return records


def earlier_record(file: Path | None, shape: Shape) -> dict[str, Any]:
    """What a benchmark has written to its file before; nothing where there is none.

    Args:
        file: that is to be written again.
        shape: of its records.

    Raises:
        ConfigError: if the file is something else.
    """
    if file is None or not file.is_file():
        return {}
    try:
        record = read_json(file)
        shape(record, "")
    except Misfit as error:
        raise ConfigError(f"{file} is there and no record of this benchmark: {error}; name another file") from error
    return dict(record)


def of_import(description: str | None, epilog: str, source: str) -> Parser:
    """The options of a script that turns a checkpoint of other authors into a stored phase.

    Args:
        description, epilog: of its help.
        source: what the file is.
    """
    parser = Parser(description=description, epilog=epilog)
    parser.add_argument("file", type=old_file, help=source)
    parser.add_argument("out", type=OutFile(), help="file to write, ending in .safetensors")
    force_option(parser)
    return parser


def opening_options(parser: Parser, images: Callable[[str], Path] = old_folder) -> None:
    """The options of every script that opens finished runs; `images` is what their images may lie in."""
    parser.add_argument(
        "--weights", type=weights, help="the pretrained weights, if they are not where the run found them"
    )
    parser.add_argument("--data-root", type=images, help="the images, if they are not where the run found them")
    parser.add_argument(
        "--trust",
        type=module,
        action="append",
        default=[],
        metavar="MODULE",
        help="a module of your own that the record may name (a method in your folder); it is imported",
    )


def finished_run(word: str) -> Path:
    """A type of argument: the folder of a finished run."""
    path = Path(word)
    read_result(path)
    return path


def of_run(
    description: str | None,
    epilog: str | None = None,
    images: Callable[[str], Path] = old_folder,
    json: Sequence[str] = ("--json",),
) -> Parser:
    """The options of a script that opens a finished run; `json` are the names of the one that writes what is said."""
    parser = Parser(description=description, epilog=epilog)
    parser.add_argument("run_dir", type=finished_run, help="folder of a finished run, the one that holds result.json")
    opening_options(parser, images)
    parser.add_argument(*json, type=OutFile(), help="also write what is printed, unrounded, as JSON")
    force_option(parser)
    return parser
