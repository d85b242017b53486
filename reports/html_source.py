"""A fingerprint of what decides a page beside the result: two states of one version give two.

It is taken over everything that a page is made of, found by following the imports and the includes, so that no list
has to be kept in step with the code.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files

MAKERS = ("leakaudit.reports.html", "leakaudit.reports.pdf")  # with all that they import
PAGE = "report.html.j2"  # with all that it includes


@cache
def fingerprint() -> str:
    """Return the first 12 hex digits of the SHA-256 over the modules and the templates that make a page."""
    return of({name: _read(name) for name in (*modules(MAKERS), *templates(PAGE))})


def of(sources: Mapping[str, bytes]) -> str:
    """Return the fingerprint of named sources, whatever their order and line ends."""
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        digest.update(name.encode() + b"\0" + source.replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:12]


def modules(roots: Iterable[str]) -> tuple[str, ...]:
    """Return these modules and those of leakaudit that they import, directly or not, early or late; by name."""
    return _closure(roots, lambda name: _imports(_read(name)))


def templates(root: str) -> tuple[str, ...]:
    """Return this template and those that it includes or imports, directly or not; by name."""
    import jinja2
    from jinja2.meta import find_referenced_templates

    parse = jinja2.Environment(autoescape=True).parse
    return _closure(
        [root], lambda name: [found for found in find_referenced_templates(parse(_read(name).decode())) if found]
    )


def _closure(roots: Iterable[str], follow: Callable[[str], Iterable[str]]) -> tuple[str, ...]:
    reached: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += follow(name)
    return tuple(sorted(reached))


def _read(name: str) -> bytes:
    """Return the source of a module or a template; one that is not there raises FileNotFoundError."""
    if name.endswith(".j2"):
        return (files("leakaudit.reports") / name).read_bytes()
    *folders, last = name.split(".")[1:] or ["__init__"]
    if files("leakaudit").joinpath(*folders, last).is_dir():
        folders, last = [*folders, last], "__init__"
    return files("leakaudit").joinpath(*folders, f"{last}.py").read_bytes()


def _imports(source: bytes) -> list[str]:
    """Return the modules of leakaudit that a source imports, but those for type checkers only."""
    tree = ast.parse(source)
    unseen = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for statement in branch.body
        for node in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0 and id(node) not in unseen:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if _is_module(name) else node.module for name in names]
        elif isinstance(node, ast.Import) and id(node) not in unseen:
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] == "leakaudit"]


def _is_module(name: str) -> bool:
    if name.split(".")[0] != "leakaudit":
        return False
    parts = name.split(".")[1:]
    return files("leakaudit").joinpath(*parts[:-1], f"{parts[-1]}.py").is_file()
