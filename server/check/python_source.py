"""A Python model's file, looked at without running any of it."""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass
from pathlib import Path

from .config_lines import Position
from .files import Unreadable, read
from .findings import Findings, Severity

CLASS = "TritonPythonModel"
COMPLETION = "auto_complete_config"


@dataclass(frozen=True, slots=True)
class PythonSource:
    """What can be said of a model's class. ``completes``: it may have a say in its own configuration."""

    completes: bool


def check_python_source(path: Path, findings: Findings, *, own_python: bool) -> PythonSource:
    """Check that a file has what a Python model needs. ``own_python``: it is run by the Python of the server.

    Another Python may know another grammar, so what this one does not read is only a warning then.
    """
    unknown = PythonSource(completes=True)
    try:
        content = read(path)
    except Unreadable as error:
        findings.error(path, str(error))
        return unknown
    severity = Severity.ERROR if own_python else Severity.WARNING
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(content, str(path))
    except SyntaxError as error:
        position = Position(error.lineno, max(error.offset or 1, 1)) if error.lineno else Position(1, 1)
        findings.add(severity, path, f"{type(error).__name__}: {error.msg}", position)
        return unknown
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        findings.add(severity, path, f"cannot be read as Python: {type(error).__name__}: {error}".rstrip(": "), Position(1, 1))
        return unknown
    return _check_class(tree, path, findings)


def _check_class(tree: ast.Module, path: Path, findings: Findings) -> PythonSource:
    classes, bound = _top_level(tree.body)
    found = classes.get(CLASS)
    if found is None:
        if CLASS not in bound and "*" not in bound and "__getattr__" not in bound:
            likely = [node for node in classes.values() if "execute" in _members(node)]
            hint = f"rename {likely[0].name} to {CLASS}" if likely else f"a model is a class {CLASS} with a method execute"
            findings.error(path, f"has no class {CLASS}", _place(likely[0]) if likely else Position(1, 1), hint)
            return PythonSource(completes=False)
        return PythonSource(completes=True)
    members, whole = _inherited(found, classes)
    if whole and "execute" not in members:
        findings.error(path, f"the class {CLASS} has no method execute", _place(found), "def execute(self, requests): …")
    return PythonSource(completes=not whole or COMPLETION in members)


def _top_level(body: list[ast.stmt]) -> tuple[dict[str, ast.ClassDef], set[str]]:
    """The classes of a module, and every other name that it may bind; ``*`` for names that cannot be told."""
    classes: dict[str, ast.ClassDef] = {}
    bound: set[str] = set()
    waiting = list(body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound.update(alias.asname or alias.name for alias in node.names)
        else:
            bound.update(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store))
            if any(isinstance(inner, ast.Name) and inner.id in ("globals", "exec", "setattr", "vars") for inner in ast.walk(node)):
                bound.add("*")
            waiting += [inner for inner in _statements(node) if isinstance(inner, ast.stmt)]
    return classes, bound


def _statements(node: ast.stmt) -> list[ast.AST]:
    """The statements right inside an ``if``, ``try``, ``with`` … of a module."""
    found: list[ast.AST] = []
    for child in ast.iter_child_nodes(node):
        found += list(ast.iter_child_nodes(child)) if isinstance(child, ast.excepthandler | ast.match_case) else [child]
    return found


def _members(node: ast.ClassDef) -> set[str]:
    classes, bound = _top_level(node.body)
    return bound | classes.keys()


def _inherited(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> tuple[set[str], bool]:
    """All members of a class, and whether those are all: not where a base, a decorator or a metaclass is not from this file."""
    members: set[str] = set()
    whole = True
    seen: set[str] = set()
    waiting = [node]
    while waiting:
        at = waiting.pop()
        if at.name in seen:
            continue
        seen.add(at.name)
        members |= _members(at)
        whole = whole and not at.decorator_list and not at.keywords and "*" not in members
        for base in at.bases:
            if isinstance(base, ast.Name) and base.id in classes:
                waiting.append(classes[base.id])
            elif not (isinstance(base, ast.Name) and base.id == "object"):
                whole = False
    return members, whole


def _place(node: ast.ClassDef) -> Position:
    return Position(node.lineno, node.col_offset + 1)
