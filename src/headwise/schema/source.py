"""The signature of a class that a configuration names, read from its source: nothing of it is imported, nor is torch.

Annotations are resolved as far as they are made of builtins, typing, collections.abc and `headwise.schema.kinds`; any
other type is Any. What cannot be found (a compiled module, a star import, an unknown base) leaves the signature open.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import importlib
import importlib.util
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional, Union

from pydantic import Field

from headwise.errors import ConfigError, suggest
from headwise.schema.check import Fields, usable

TRANSPARENT = (
    "builtins",
    "typing",
    "collections.abc",
    "pathlib",
    "headwise.schema.kinds",
    "headwise.schema.peftfields",
)
"""Modules whose names are taken as they are."""
SCALARS = ("bool", "int", "float", "str", "list", "tuple", "dict", "object")
PLAIN_BASES = ("object", "ABC", "Protocol", "Generic")
Node = Annotated[Mapping[str, Any], Field(description="a node with _target_, chosen by GROUP@KEY=OPTION")]
"""A field whose type is a class: it is built from a node of its own."""
Definition = ast.ClassDef | ast.FunctionDef | ast.expr


@dataclass(frozen=True)
class Module:
    """Source of one module, by its dotted name; in a package relative imports start there."""

    name: str
    is_package: bool
    tree: ast.Module

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that a ``from ... import`` names."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])


@functools.cache
def module_of(name: str) -> Module | None:
    """A module's source, without importing it or its parents; None if there is no such file."""
    top, *rest = name.split(".")
    try:
        # of the first part only: to find a dotted name, importlib imports what stands before its last dot
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return None
    if not rest:
        files = [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
    else:
        folders = [Path(folder).joinpath(*rest) for folder in spec.submodule_search_locations or ()]
        files = [file for folder in folders for file in (folder / "__init__.py", folder.with_suffix(".py"))]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    try:
        with tokenize.open(file) as text:
            return Module(name, file.name == "__init__.py", ast.parse(text.read()))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def _statements(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What a module runs on import, branches included."""
    for node in nodes:
        yield node
        if isinstance(node, ast.If | ast.Try):
            for part in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, part, []))


def find(module: str, name: str, seen: tuple[tuple[str, str], ...] = ()) -> tuple[Module, Definition] | None:
    """Where a name of a module is defined, imports followed; None if that is not to be seen."""
    source = module_of(module)
    # two modules may import one name from each other
    if source is None or (module, name) in seen:
        return None
    for node in _statements(source.tree.body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return source, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return source, node.value
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(source.absolute(node), alias.name, (*seen, (module, name)))
    return None


def _names(module: Module) -> list[str]:
    """Classes and functions that a module defines."""
    return [node.name for node in _statements(module.tree.body) if isinstance(node, ast.ClassDef | ast.FunctionDef)]


def _hides_names(module: Module) -> bool:
    """Whether names come from where they are not to be seen."""
    stars = (isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in _statements(module.tree.body))
    lazy = "__getattr__" in _names(module)
    return lazy or any(stars)


@functools.cache
def fields_of_target(target: str) -> Fields:
    """What may be given to what ``_target_`` names; ConfigError if there is no such module, or plainly no such name."""
    module, _, name = target.rpartition(".")
    source = module_of(module)
    if source is None:
        top = target.partition(".")[0]
        if not module or importlib.util.find_spec(top) is None or top == "headwise":
            raise ConfigError(f"_target_={target!r} cannot be found: there is no module {module or target!r}")
        return Fields({}, is_open=True)
    definition = find(module, name)
    if definition is None:
        if not _hides_names(source) and not any(name == _bound(node) for node in ast.walk(source.tree)):
            hint = suggest(name, _names(source))
            raise ConfigError(f"_target_={target!r} cannot be found: {module} has no {name!r}{hint}")
        return Fields({}, is_open=True)
    return _fields(*definition)


def _bound(node: ast.AST) -> str | None:
    """A name that a node binds or mentions."""
    return node.id if isinstance(node, ast.Name) else node.asname or node.name if isinstance(node, ast.alias) else None


@functools.cache
def literal_of_target(target: str, attribute: str) -> Any:
    """The plain value that a class, or the nearest of its bases, gives to an attribute; None if none is to be seen."""
    module, _, name = target.rpartition(".")
    definition = find(module, name)
    source, node = definition or (None, None)
    if source is None or not isinstance(node, ast.ClassDef):
        return None
    for statement in node.body:
        bound = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        if value is not None and any(isinstance(at, ast.Name) and at.id == attribute for at in bound):
            with contextlib.suppress(ValueError):
                return ast.literal_eval(value)
            return None
    names = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
    inherited = (literal_of_target(f"{source.name}.{name}", attribute) for name in names)
    return next((value for value in inherited if value is not None), None)


def _fields(module: Module, node: Definition) -> Fields:
    if isinstance(node, ast.FunctionDef):
        return _arguments(module, node, skip=0)
    if not isinstance(node, ast.ClassDef):
        return Fields({}, is_open=True)
    own = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if own is not None:
        return _arguments(module, own, skip=1)
    types: dict[str, Any] = {}
    required: dict[str, bool] = {}
    is_open = False
    # the first base wins, as in Python, so it is written last
    for base in reversed(node.bases):
        inherited = _base(module, base)
        is_open |= inherited.is_open
        types |= inherited.types
        required |= {name: name in inherited.required for name in inherited.types}
    decorators = [ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list]
    if any(name.rpartition(".")[2] == "dataclass" for name in decorators):
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                _add_field(module, statement, statement.target.id, types, required)
    # any other decorator may make an `__init__` that is not to be seen here
    elif decorators and not types:
        is_open = True
    return Fields(types, frozenset(name for name, needed in required.items() if needed), is_open)


def _base(module: Module, base: ast.expr) -> Fields:
    name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base).rpartition(".")[2]
    definition = find(module.name, name)
    if definition is not None and isinstance(definition[1], ast.ClassDef):
        return _fields(*definition)
    return Fields({}, is_open=name not in PLAIN_BASES)


def _add_field(
    module: Module, node: ast.AnnAssign, name: str, types: dict[str, Any], required: dict[str, bool]
) -> None:
    """One line of a dataclass's body."""
    kind = resolve(module, node.annotation)
    if kind is ClassVar or ast.unparse(node.annotation).endswith("KW_ONLY"):
        return
    is_required = node.value is None
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).rpartition(".")[2] == "field":
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.value.keywords}
        if options.get("init") == "False":
            return
        is_required = not options.keys() & {"default", "default_factory"}
    types[name], required[name] = usable(kind), is_required


def _arguments(module: Module, node: ast.FunctionDef, skip: int) -> Fields:
    """The arguments of a function."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    without = positional[: len(positional) - len(given.defaults)]
    needed = [*without, *(a for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True) if d is None)]
    named = [*positional[skip:], *given.kwonlyargs]
    types = {a.arg: Any if a.annotation is None else usable(resolve(module, a.annotation)) for a in named}
    return Fields(types, frozenset(a.arg for a in needed if a.arg in types), given.kwarg is not None)


def resolve(module: Module, node: ast.expr) -> Any:
    """The type that an annotation means; Any where it is made of something else."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return resolve(module, ast.parse(node.value, mode="eval").body)
        return type(None) if node.value is None else Any
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union(resolve(module, node.left), resolve(module, node.right))
    if isinstance(node, ast.Subscript):
        return _subscripted(module, node)
    if isinstance(node, ast.Attribute):
        owner = ast.unparse(node.value)
        return getattr(importlib.import_module(owner), node.attr, Any) if owner in TRANSPARENT else Any
    return _named(module, node.id) if isinstance(node, ast.Name) else Any


def _named(module: Module, name: str) -> Any:
    for node in _statements(module.tree.body):
        if isinstance(node, ast.ImportFrom) and module.absolute(node) in TRANSPARENT:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return getattr(importlib.import_module(module.absolute(node)), alias.name, Any)
    place = find(module.name, name)
    if place is None:
        return getattr(builtins, name) if name in SCALARS else Any
    source, definition = place
    if isinstance(definition, ast.ClassDef):
        enumerated = any("Enum" in ast.unparse(base) for base in definition.bases)
        return Any if enumerated else Node
    return resolve(source, definition) if isinstance(definition, ast.expr) else Any


def _subscripted(module: Module, node: ast.Subscript) -> Any:
    base = resolve(module, node.value)
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if base is Literal:
        values = [part.value for part in parts if isinstance(part, ast.Constant)]
        return Literal[tuple(values)] if len(values) == len(parts) else Any
    if base is ClassVar:
        return ClassVar
    if base is Annotated:
        return resolve(module, parts[0])
    if base is Any or base is Node:
        return Any
    arguments = [... if isinstance(p, ast.Constant) and p.value is ... else resolve(module, p) for p in parts]
    if base in (Union, Optional):
        return functools.reduce(_union, [*arguments, *([type(None)] if base is Optional else [])])
    try:
        return base[tuple(arguments)]
    except TypeError:
        return Any


def _union(left: Any, right: Any) -> Any:
    return Any if left is Any or right is Any else Union[left, right]  # noqa: UP007  of two values
