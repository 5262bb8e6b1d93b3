"""The documents are short, plain and true: sentences, links, commands, paths, and names in the code."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import statistics
from pathlib import Path
from types import ModuleType

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep

from headwise.commands.overrides import readable
from made_cases import each
from made_networks import compose_config
from made_scripts import loaded, parser_of

REPO = Path(__file__).parent.parent
DOCS = REPO / "docs"
KEPT = DOCS / "results"
"""Records of runs: made by commands, not measured as prose."""
PAGES = [REPO / "README.md", *sorted(page for page in DOCS.rglob("*.md") if KEPT not in page.parents)]
LINKED = [*PAGES, REPO / "CONTRIBUTING.md", REPO / "CHANGELOG.md", KEPT / "older" / "README.md"]
MEAN, LONG, MOST_LONG, WORDS, README_LINES = 18, 35, 10, 14_600, 150


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_code(text: str) -> str:
    return re.sub(r"^( *)(```+).*?^\1\2 *$", "", text, flags=re.DOTALL | re.MULTILINE)


def plain(text: str) -> str:
    """A sentence as it is read: links as their words, inline code as one word."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`[^`]*`", "code", text).replace("*", "")


def sentences(block: str) -> list[str]:
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])", re.sub(r"(?<=[.!?])\s+code", " Code", " ".join(block.split())))
    return [part for part in parts if re.search(r"[a-zA-Z]", part)]


def prose(text: str) -> tuple[list[str], list[str]]:
    """Sentences of paragraphs and lists, and those of the cells of tables."""
    blocks: list[str] = []
    cells: list[str] = []
    fresh = True
    for line in plain(without_code(text)).splitlines():
        bare = line.strip()
        if bare.startswith("|"):
            cells += [cell for cell in bare.strip("|").split("|") if set(cell) - set(" -:")]
            fresh = True
        elif not bare or bare.startswith(("#", ":::", "<")):
            fresh = True
        elif fresh or re.match(r"([-*]|\d+\.) ", bare):
            blocks.append(re.sub(r"^([-*]|\d+\.) ", "", bare))
            fresh = False
        else:
            blocks[-1] += f" {bare}"
    return [s for block in blocks for s in sentences(block)], [s for cell in cells for s in sentences(cell)]


def length(sentence: str) -> int:
    return len(re.findall(r"\w[\w'.,%=/+-]*", sentence))


def test_sentences_are_short() -> None:
    lengths, long = {}, []
    for page in PAGES:
        said, cells = prose(page.read_text(encoding="utf-8"))
        lengths[page.relative_to(REPO).as_posix()] = [length(s) for s in said]
        long += [(page.name, length(s), s) for s in [*said, *cells] if length(s) > LONG]
    means = {page: round(statistics.mean(counts), 1) for page, counts in lengths.items() if counts}
    mean = statistics.mean(n for counts in lengths.values() for n in counts)
    assert mean < MEAN, f"{mean:.1f} words a sentence: {means}"
    assert all(value < MEAN + 3 for value in means.values()), means
    assert len(long) < MOST_LONG, long


def test_the_documents_are_short() -> None:
    texts = {page.name: without_code(page.read_text(encoding="utf-8")) for page in PAGES if page.parent != REPO}
    words = {name: sum(bool(re.search("[A-Za-z]", word)) for word in text.split()) for name, text in texts.items()}
    assert sum(words.values()) <= WORDS, f"{sum(words.values())}: {words}"
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as mkdocs and GitHub both write them."""
    heads = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    bare = [re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head)).strip().lower() for head in heads]
    return {re.sub(r"\s", "-", head) for head in bare}


@each("page", LINKED)
def test_links_lead_somewhere(page: Path) -> None:
    made = {DOCS / "reference" / "configuration.md", DOCS / "method" / "index.md"}
    for _, target, anchor in re.findall(
        r"\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)", without_code(page.read_text("utf-8"))
    ):
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists() or file in made, target
        if anchor and file not in made:
            assert anchor[1:] in anchors(file), f"{target}{anchor}"


def test_names_stand_in_the_modules_that_pages_link(hooks: ModuleType) -> None:
    linked = 0
    for page in (*PAGES, REPO / "CONTRIBUTING.md"):
        for match in hooks.LINK.finditer(page.read_text(encoding="utf-8")):
            path = hooks.target_of(match["target"], page.parent.relative_to(REPO).as_posix())
            if path is not None and path.startswith("src/") and re.fullmatch(r"`[A-Za-z_][\w.]*`", match["text"]):
                assert match["text"].strip("`") in hooks.names_in(REPO / path), f"{match[0]}: python docs/hooks.py"
                linked += 1
    assert linked > 10


def test_a_link_of_a_name_that_moved_is_mended(hooks: ModuleType) -> None:
    right = f"[`HeadLoRA`](../{hooks.home('HeadLoRA').relative_to(REPO).as_posix()})"
    assert hooks.mended("see [`HeadLoRA`](../src/headwise/gone.py).", "docs") == f"see {right}."
    assert hooks.mended(right, "docs") == right


def test_every_name_of_the_api_is_found(hooks: ModuleType) -> None:
    page = hooks.with_modules((DOCS / "reference" / "api.md").read_text(encoding="utf-8"))
    found = re.findall(r"^::: headwise\.[\w.]*\.(\w+)$", page, flags=re.MULTILINE)
    assert {"Method", "TwoPhase", "HeadLoRA", "Gate", "Backbone", "Result", "load"} <= set(found)
    assert len(found) == page.count("::: ")
    with pytest.raises(LookupError, match="defined in 0 modules"):
        hooks.dotted("Nowhere")


def test_the_configuration_reference_has_every_option(hooks: ModuleType) -> None:
    page = hooks.configuration()
    groups = {file.parent.relative_to(hooks.CONF).as_posix() for file in hooks.CONF.rglob("*.yaml")}
    groups -= {".", "hydra/help"}  # what --help prints
    assert all(any(group == known or group.startswith(f"{known}/") for known in hooks.GROUPS) for group in groups)
    for group in hooks.GROUPS:
        assert f"\n## {group}\n" in page
        assert all(f"\n| `{name}` | " in page for name in hooks.options(group))
    assert "| `schedule: r0_legacy` paper: cosine" not in page and "`schedule: r0_legacy` paper: cosine" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (3, 4) for row in rows)


def test_links_out_of_docs_lead_to_pages_of_the_site(hooks: ModuleType) -> None:
    text = "[a](../CONTRIBUTING.md) [`Gate`](%s) [b](results.md#x) [c](https://x.y) [d](../src)"
    file = hooks.home("Gate")
    here = hooks.relinked(text % f"../{file.relative_to(REPO).as_posix()}", "docs", "walk.md")
    line = next(i for i, code in enumerate(file.read_text().splitlines(), 1) if code.startswith("class Gate"))
    assert here.startswith('[a](source/CONTRIBUTING.md) <a href="source/src/headwise/')
    assert f'.py.html#__codelineno-0-{line}"><code>Gate</code></a> [b](results.md#x) [c](https://x.y) d' in here


def commands(pattern: str = r"python (scripts|benchmarks)/|make ") -> list[tuple[str, str]]:
    """Every line of a code block that runs a script, a benchmark or make, or what else is asked for, with its page."""
    found = []
    for page in [*PAGES, REPO / "CONTRIBUTING.md", KEPT / "older" / "README.md"]:
        for block in re.findall(r"```(?:bash|console)?\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            found += [(page.name, re.sub(r"^(\$ )?(\w+=\S+ )*", "", line.strip())) for line in lines]
    return [(page, line) for page, line in found if re.match(pattern, line)]


@functools.cache
def options_of(name: str) -> set[str]:
    """Options of a script, by its own parser."""
    return set(parser_of(loaded(name))._option_string_actions)


def single(word: str) -> str | None:
    """A choice with the first value of its sweep; None for one of all there are."""
    (typed,) = readable([word], sweeps=True)
    override = OverridesParser.create().parse_override(typed)
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return f"{typed.partition('=')[0]}={value.list[0]}"
    return None if override.is_sweep_override() else typed


@each("page, command", sorted(set(commands("python train.py"))))
def test_runs_that_pages_show_compose(page: str, command: str) -> None:
    words = shlex.split(command.removeprefix("python train.py"), comments=True)
    if any(word.startswith(("-s", "--help", "hydra.searchpath=")) for word in words):
        return  # answered without a run, or tests/test_searchpath.py makes that folder
    chosen = [single(word) for word in words if word != "-m"]
    assert "-m" in words or [single(word) for word in words] == readable(words), "a sweep lacks its -m"
    assert compose_config(*filter(None, chosen)).method.label


@each("page, command", sorted(set(commands())))
def test_commands_are_known(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        makefile = (REPO / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
        names = [word.partition("=")[0] for word in words[1:] if "=" in word]
        assert all(re.search(rf"^{name}\s*\??=|\$\({name}\)", makefile, flags=re.MULTILINE) for name in names)
        return
    shared = [*(REPO / "src" / "headwise").rglob("cli.py"), *(REPO / "benchmarks").glob("*.py")]
    code = "".join(file.read_text(encoding="utf-8") for file in [REPO / words[1], *shared])
    asked = [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
    if words[1].startswith("scripts/"):
        assert set(asked) <= options_of(Path(words[1]).stem)
    assert all(f'"{name}"' in code for name in asked), asked


def test_paths_that_pages_name_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"`((?:src|conf|scripts|tests|benchmarks|docs)/[\w./-]+)`", page.read_text("utf-8")):
            if "fourier" not in path and "mine" not in path:
                assert (REPO / path).exists(), f"{page.name}: {path}"


def test_modules_that_pages_name_exist() -> None:
    """``updates/gate.py`` is a path below the package, or below the repository."""
    package = REPO / "src" / "headwise"
    for page in (*PAGES, REPO / "CONTRIBUTING.md"):
        for path in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", page.read_text("utf-8")):
            stands = any((root / path).exists() for root in (package, REPO))
            assert stands or "fourier" in path or path.startswith("own/"), f"{page.name}: {path}"


def test_headings_of_the_walk_name_the_rooms_that_their_steps_pass() -> None:
    _, *sections = re.split(r"^## ", (DOCS / "walk.md").read_text("utf-8"), flags=re.MULTILINE)
    for section in sections:
        head, _, steps = section.partition("\n")
        passed = set(re.findall(r"\(\.\./src/headwise/(\w+)/", steps))
        assert passed == set(re.findall(r"\w+", head[head.rindex("(") :])), head
