"""List the methods, where they act and what they cost: python scripts/list_methods.py --backbone vit_b16_in21k.

The name of one method alone prints its page: formula, source, licence, size, cost, records, and when not to use it.

With --papers, the sizes that the papers print beside those counted here. Every method is really installed in a network
of that shape with random weights; nothing is downloaded.

With --runs, what every method of finished runs cost and reached, from their records alone:
python scripts/list_methods.py --runs methods --out docs/results/methods.md --json docs/results/methods.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate

import headwise.runs.experiment  # noqa: F401  registers what conf/ interpolates with
from headwise.cli import exclusive, of_results, results_of, script
from headwise.commands.arguments import OutFile, Whole
from headwise.commands.messages import instantiation
from headwise.commands.written import writing
from headwise.comparison import lineup
from headwise.errors import ConfigError, suggest
from headwise.protocol.described import method_names
from headwise.runs.jobs import checked_config
from headwise.runs.postponed import postpone
from headwise.storage import atomic

if TYPE_CHECKING:
    from headwise.methods._catalog import CatalogRow

CONF = Path(__file__).resolve().parents[1] / "conf"
BACKBONE = "vit_b16_in21k"
MOST_CLASSES = 100_000


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = of_results(__doc__)
    parser.set_defaults(root=None)  # it means nothing without --runs
    parser.add_argument("methods", nargs="*", help="names; all if left out")
    parser.add_argument("--backbone", help="of conf/backbone (vit_b16_in21k)")
    parser.add_argument("--classes", type=Whole(2, MOST_CLASSES), help="of the head (10)")
    parser.add_argument("--json", type=OutFile(), help="also write everything as JSON")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, such as rank=r8")
    parser.add_argument("--papers", action="store_true", help="list what papers print, at the settings it needs")
    parser.add_argument("--runs", metavar="NAME", help="folder of finished runs below the root, such as methods")
    parser.add_argument("--out", type=OutFile(), help="also write the table, in Markdown")
    return parser.parse_args(arguments)


def about(name: str) -> str:
    """First sentence of a method's file."""
    from headwise.runs import method_page  # loads torch

    return method_page.about(name)


def built(*overrides: str) -> Any:
    """The method that a command line chooses."""
    chosen = checked_config(CONF, overrides)["method"]
    with instantiation():
        return instantiate(chosen, _convert_="all")


def of_runs(options: argparse.Namespace) -> tuple[str, Any]:
    """What finished runs cost and reached: the table, and the same as data."""
    if options.methods or options.papers or options.set:
        raise ConfigError("--runs lists every method of these runs as it was run: give no methods, --papers or --set")
    exclusive(
        {"--backbone": options.backbone, "--classes": options.classes}, "beside --runs, which lists runs as they were"
    )
    root = options.root or Path("outputs")
    runs = results_of(root, options.runs)
    found = lineup.lineups(runs.results)
    if not found:
        raise ConfigError(f"no tested run in {root / options.runs}")
    found[0].notes.extend(runs.notes)
    return lineup.markdown(found), lineup.plain(found)


def of_network(options: argparse.Namespace) -> tuple[str, Any]:
    """What methods cost in a network of that shape: the table, and the same as data."""
    exclusive({"--root": options.root}, "without --runs, which names finished runs below it")
    options.backbone, options.classes = options.backbone or BACKBONE, 10 if options.classes is None else options.classes
    backbones = sorted(file.stem for file in (CONF / "backbone").glob("*.yaml"))
    known = {"method": method_names(), "backbone": backbones}
    for group, given in (("method", options.methods), ("backbone", [options.backbone])):
        for name in given:
            if name not in known[group]:
                raise ConfigError(f"unknown {group} {name!r}{suggest(name, known[group])}")

    for given in options.set:
        if (key := given.lstrip("+~").partition("=")[0]) in ("method", "backbone"):
            raise ConfigError(f"--set {given}: name the {key} without --set (METHOD --backbone NAME)")

    if options.set:  # before a network is built
        checked_config(CONF, [f"method={(options.methods or known['method'])[0]}", *options.set])

    postpone()
    from headwise.methods._catalog import markdown, measure, papers, printed_sizes
    from headwise.network.backbone import BackboneSpec

    spec = checked_config(CONF, [f"backbone={options.backbone}", "backbone.weights=none"])["backbone"]
    net = BackboneSpec(**spec).build()
    net.new_head(options.classes)

    def entries_of(*overrides: str) -> list[CatalogRow]:
        print(f"installing {' '.join(overrides)}", file=sys.stderr, flush=True)
        name = overrides[0].removeprefix("method=")
        return measure(name, about(name), built(*overrides, *options.set).phases(), net)

    wanted = options.methods or known["method"]
    if options.papers:
        settings = dict.fromkeys(size.setting for size in printed_sizes() if size.setting and size.method in wanted)
        measured = {setting: entries_of(*setting)[-1] for setting in settings}
        return papers(measured), [entry.plain() for entry in measured.values()]
    entries = [entry for name in wanted for entry in entries_of(f"method={name}")]
    return markdown(entries, options.backbone), [entry.plain() for entry in entries]


def is_page(options: argparse.Namespace) -> bool:
    """Whether one method alone is named, and nothing that asks for the table."""
    asked = (options.backbone, options.classes, options.json, options.set, options.papers, options.runs, options.root)
    return len(options.methods) == 1 and not any(asked)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    with writing(options.out, options.json, force=options.force):
        if is_page(options):
            postpone()
            from headwise.runs import method_page

            text, data = method_page.page(options.methods[0], CONF.parent / "docs" / "results"), None
        else:
            text, data = of_runs(options) if options.runs else of_network(options)
        text = text.rstrip("\n") + "\n"
        print(text, end="")
        if options.out:
            atomic.write_text(options.out, text)
        if options.json:
            atomic.write_json(options.json, data)
        return 0


if __name__ == "__main__":
    sys.exit(main())
