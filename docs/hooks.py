"""What the site holds and no file does: the configuration reference, a page per method, the sources that pages link to.

`mkdocs.yml` names this file, and mkdocs calls its functions ``on_...``. Run alone, ``python docs/hooks.py`` points the
links of the pages to where their classes and functions are now; use it after a module has moved.
"""

from __future__ import annotations

import ast
import base64
import functools
import json
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
CONF = REPO / "conf"
SOURCES = REPO / "src" / "headwise"
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
API = re.compile(r"^::: (?P<name>\w+)(?: beside (?P<beside>\w+))?$", re.MULTILINE)
LARGEST = 200_000
"""Bytes of a file that gets a page of its own."""
ORDER = (
    "method",
    "protocol",
    "dataset",
    "data",
    "backbone",
    "rank",
    "ne",
    "gate",
    "consistency",
    "trainer",
    "logger",
    "experiment",
)
LAUNCHERS = "hydra/launcher"
GROUPS = (*ORDER, LAUNCHERS)
LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?https?:"
    r"|<link[^>]*\srel=[\"']?(?:stylesheet|icon|preconnect|preload)[^>]*\shref=[\"']?https?:"
)
IMPORTED = re.compile(r"@import\s+(?:url\()?[\"']?https?:|url\([\"']?https?:")


@functools.cache
def names_in(file: Path) -> dict[str, int]:
    """Line of every class, function and constant of a module, and of what its classes hold (``Class.method``)."""
    lines: dict[str, int] = {}

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                lines.setdefault(prefix + node.name, node.lineno)
                if isinstance(node, ast.ClassDef):
                    walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                lines.setdefault(prefix + node.target.id, node.lineno)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        lines.setdefault(prefix + target.id, node.lineno)

    walk(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return lines


def home(name: str) -> Path:
    """The one module that defines a class or function, by its name (``HeadLoRA``, ``HeadLoRA.build``).

    Raises:
        LookupError: if none does, or several do.
    """
    files = [file for file in sorted(SOURCES.rglob("*.py")) if name in names_in(file)]
    if len(files) != 1:
        raise LookupError(f"{name} is defined in {len(files)} modules: {[str(f.relative_to(REPO)) for f in files]}")
    return files[0]


def dotted(name: str, beside: str | None = None) -> str:
    """The full name that Python imports: ``headwise.methods.base.Method`` for ``Method``.

    Args:
        name: of a class or function.
        beside: a name of the same module that only this module defines, where several define `name`.

    Raises:
        LookupError: if no module defines it, or several do.
    """
    file = home(beside or name)
    if name not in names_in(file):
        raise LookupError(f"{name} is not defined beside {beside}, in {file.relative_to(REPO)}")
    return ".".join([*file.relative_to(SOURCES.parent).with_suffix("").parts, name])


def with_modules(markdown: str) -> str:
    """The page with full names after ``:::``, as mkdocstrings wants them."""
    return API.sub(lambda match: f"::: {dotted(match['name'], match['beside'])}", markdown)


def _split(line: str) -> tuple[str, str]:
    """A line of YAML and the comment at its end."""
    found = re.match(r"^(?P<code>(?:[^#\"']|\"[^\"]*\"|'[^']*'|(?<!\s)#)*?)\s*(?:\s#\s?(?P<comment>.*))?$", line)
    return (line, "") if found is None else (found["code"].rstrip(), (found["comment"] or "").strip())


def option(file: Path) -> tuple[str, str, list[tuple[str, str]]]:
    """What a file of conf/ says of itself: its comment, its command, and its fields with their comments."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = [line.lstrip("# ").strip() for line in lines if line.startswith("#") and "@package" not in line]
    start = next((i for i, line in enumerate(head) if line.startswith("Run:")), len(head))
    command = head[start].removeprefix("Run:").strip() if start < len(head) else ""
    rest = [line for line in head[start + 1 :] if not line.startswith("python ")]
    fields = []
    for line in (line for line in lines if line.strip() and not line.startswith("#")):
        code, comment = _split(line)
        if code.strip():
            fields.append((code, comment))
    return " ".join([*head[:start], *rest]), re.split(r"\s{3,}", command)[0], fields


def options(group: str) -> list[str]:
    """Names of a group's options, of those in folders as well."""
    folder = CONF / group
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fields(fields: list[tuple[str, str]]) -> str:
    """The fields of an option in one cell of a table, each on its line; indents stay."""
    shown = []
    for code, comment in fields:
        indent = "&nbsp;" * (len(code) - len(code.lstrip()))
        shown.append(f"{indent}`{_cell(code.strip())}`{' ' + _cell(comment) if comment else ''}")
    return "<br>".join(shown)


def configuration() -> str:
    """The page of every group of conf/ and its options, from the comments of the files."""
    parts = [
        "# Configuration",
        "Every group is a folder of `conf/`, every option a file in it. The texts are the comments of these files. "
        "Choose an option with `GROUP=OPTION`, change a field with `GROUP.FIELD=VALUE`.",
        "## Top level",
        "Fields of `conf/config.yaml` that belong to no group.",
        "| field | |\n| --- | --- |",
    ]
    _, _, fields = option(CONF / "config.yaml")
    top = [
        (code, comment) for code, comment in fields if re.match(r"\w+:", code) and code not in ("defaults:", "hydra:")
    ]
    parts[-1] += "".join(f"\n| `{_cell(code)}` | {_cell(comment)} |" for code, comment in top)
    for group in GROUPS:
        parts += [f"## {group}", "| option | | fields |\n| --- | --- | --- |"]
        for name in options(group):
            comment, command, fields = option(CONF / group / f"{name}.yaml")
            run = f"<br>`{_cell(command)}`" if command else ""
            parts[-1] += f"\n| `{name}` | {_cell(comment)}{run} | {_fields(fields)} |"
    return "\n\n".join(parts) + "\n"


def method_pages() -> dict[str, str]:
    """A page for each method, and their list, see `headwise.runs.method_page`."""
    if str(SOURCES.parent) not in sys.path:  # of this checkout, whatever is installed
        sys.path.insert(0, str(SOURCES.parent))
    from headwise.runs import method_page

    kept = REPO / "docs" / "results"
    pages = {f"method/{name}.md": method_page.page(name, kept) for name in options("method")}
    return {"method/index.md": method_page.index(), **pages}


def target_of(target: str, folder: str) -> str | None:
    """The path in the repository that a link of a page in `folder` leads to; None for an address or an anchor."""
    if not target or re.match(r"[a-z]+:", target):
        return None
    return posixpath.normpath(posixpath.join(folder, target))


def has_page(path: str) -> bool:
    """Whether a file outside of docs/ is shown on the site."""
    file = REPO / path
    return not path.startswith("docs/") and file.is_file() and file.stat().st_size <= LARGEST


def page_of(path: str) -> str:
    """Where the site shows a file of the repository that is not in docs/."""
    return "source/" + (path if path.endswith(".md") else f"{path}.md")


def relinked(markdown: str, folder: str, page: str) -> str:
    """Links out of docs/ as links to the pages that show those files, of a name in a module to its line.

    Args:
        markdown: of the page.
        folder: in the repository, which its links are relative to.
        page: its path on the site.
    """

    def replace(match: re.Match[str]) -> str:
        path = target_of(match["target"], folder)
        if path is None:
            return match[0]
        there, anchor, name = path.removeprefix("docs/"), match["anchor"] or "", match["text"].strip("`")
        if path.startswith("docs/"):
            there = report_of(there) if there.endswith(".html") else there.replace(".ipynb", ".md")
        elif has_page(path):
            there = page_of(path)
        else:
            return match["text"]
        there = posixpath.relpath(there, posixpath.dirname(page) or ".")
        line = names_in(REPO / path).get(name) if path.endswith(".py") else None
        if line is not None:  # written as HTML, since mkdocs does not know the anchors of lines
            return f'<a href="{there.removesuffix(".md")}.html#__codelineno-0-{line}"><code>{name}</code></a>'
        return f"[{match['text']}]({there}{anchor})"

    return LINK.sub(replace, markdown)


def report_of(path: str) -> str:
    """Where the site has a kept report, whose own name is that of the page of its tables: x.md becomes x.html, too."""
    return f"{path.removesuffix('.html')}_report.html"


def source_page(path: str) -> str:
    """The page that shows a file outside of docs/."""
    head = "---\nsearch:\n  exclude: true\nhide: [navigation]\n---\n\n"
    text = (REPO / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return head + relinked(text, posixpath.dirname(path), page_of(path))
    language = {".py": "python", ".yaml": "yaml", ".json": "json"}.get(Path(path).suffix, "text")
    return f'{head}# {path}\n\n``````{{ .{language} linenums="1" }}\n{text}``````\n'


def shown_sources() -> list[str]:
    """Files outside of docs/ that pages link to, and what those that are Markdown link to in turn."""
    pages = [file.relative_to(REPO).as_posix() for file in sorted((REPO / "docs").rglob("*.md"))]
    shown: dict[str, None] = {}
    while pages:
        page = pages.pop()
        for match in LINK.finditer((REPO / page).read_text(encoding="utf-8")):
            path = target_of(match["target"], posixpath.dirname(page))
            if path is not None and path not in shown and has_page(path):
                shown[path] = None
                if path.endswith(".md"):
                    pages.append(path)
    return list(shown)


def notebook(name: str) -> dict[str, str | bytes]:
    """The page of a notebook of docs/ as it was executed, and its pictures, by their place on the site."""
    page, pictures = "", {}
    for cell in json.loads((REPO / "docs" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        page += source if cell["cell_type"] == "markdown" else f"``` {{ .python }}\n{source}\n```"
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if picture := data.get("image/png"):
                pictures[f"{name}-{len(pictures) + 1}.png"] = base64.b64decode(picture)
                page += f"\n\n![What the cell draws]({name}-{len(pictures)}.png)"
            elif text := "".join(data.get("text/plain", "")).strip():
                page += f"\n\n``` {{ .text .no-copy }}\n{text}\n```"
        page += "\n\n"
    return {f"{name}.md": page, **pictures}


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages that are made from conf/, from sources and from notebooks."""
    from mkdocs.structure.files import File

    made: dict[str, str | bytes] = {"reference/configuration.md": configuration(), **notebook("notebook")}
    made |= {**method_pages(), **{page_of(path): source_page(path) for path in shown_sources()}}
    for report in (REPO / "docs" / "results").glob("*.html"):
        made[report_of(f"results/{report.name}")] = report.read_text(encoding="utf-8")
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Mend the links that leave docs/, and give the API's names their modules."""
    if page.file.generated_by is None:
        markdown = relinked(markdown, posixpath.dirname(f"docs/{page.file.src_uri}"), page.file.src_uri)
    return with_modules(markdown)


def on_post_build(*, config: Any) -> None:
    """Refuse a site that would load anything from elsewhere when it is looked at."""
    site = Path(config["site_dir"])
    loading = [page for page in site.rglob("*.html") if LOADED.search(page.read_text(encoding="utf-8"))]
    loading += [sheet for sheet in site.rglob("*.css") if IMPORTED.search(sheet.read_text(encoding="utf-8"))]
    if loading:
        raise RuntimeError(f"the site would load from elsewhere: {[str(file) for file in loading]}")


def mended(markdown: str, folder: str) -> str:
    """The page with every link of a name to a module led to where the name is defined now."""

    def replace(match: re.Match[str]) -> str:
        path, name = target_of(match["target"], folder), match["text"].strip("`")
        if path is None or not path.startswith("src/") or not re.fullmatch(r"`[A-Za-z_][\w.]*`", match["text"]):
            return match[0]
        if (REPO / path).is_file() and name in names_in(REPO / path):
            return match[0]
        try:
            found = home(name)
        except LookupError as error:
            print(f"{folder}: {error}")
            return match[0]
        return f"[{match['text']}]({os.path.relpath(found, REPO / folder)})"

    return LINK.sub(replace, markdown)


def main() -> None:
    """Mend every page."""
    for file in [REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]:
        old = file.read_text(encoding="utf-8")
        new = mended(old, file.parent.relative_to(REPO).as_posix())
        if new != old:
            file.write_text(new, encoding="utf-8")
            print(f"mended {file.relative_to(REPO)}")


if __name__ == "__main__":
    main()
