"""Where in a user's sources a finding is mended: the line that wrote a parameter, or the function that makes a model.

An audit names functions, files and lines; this finds them below the working directory. It reads and imports nothing.
"""

import ast
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from coordcheck.records.schema import ARROW

OF_OPTIMIZER = {"learning_rate", "weight_decay", "decay", "epsilon", "groups"}  # what the function of that name decides
ROOTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")  # where a CI system says that the repository is
LEFT_OUT = {"site-packages", "dist-packages", "node_modules", "__pycache__"}
RULE = re.compile(r"^(?P<function>\S+) (?P<file>.+\.py):(?P<line>\d+)( \(|$)")


class Place(NamedTuple):
    """A line of a file.

    Attributes:
        path: From the repository's root where a CI system says where that is, else from the working directory.
        line: From 1 on.
    """

    path: str
    line: int


def place_of(
    quantity: str, parameter: str | None, parameters: pd.DataFrame | None, functions: Mapping[str, str]
) -> Place | None:
    """Where what was found is mended, as far as that can be read.

    Args:
        quantity: What is wrong, for example "init" or "learning_rate".
        parameter: Of the model; None if it is none.
        parameters: The table of an audit, whose ``rules`` say who wrote each; None without one.
        functions: Dotted names of the user's functions "build" and "optimizer".

    Returns:
        For what an optimizer decides the function that makes it; else the last line of the user's that wrote the
        parameter; else the function that builds the model; None if none of them is below the working directory.
    """
    here = Path.cwd()
    if quantity in OF_OPTIMIZER and (found := _definition(functions.get("optimizer"), here)):
        return found
    if parameters is not None and quantity not in OF_OPTIMIZER:
        rows = parameters[parameters["parameter"] == parameter]
        for rule in [rule for said in rows["rules"] for rule in str(said).split(ARROW)][::-1]:
            if found := _line(rule, here):
                return found
    return _definition(functions.get("build"), here)


def _line(rule: str, here: Path) -> Place | None:
    """Where a rule of an audit, "FUNCTION FILE:LINE (...)", stands, if that is one place."""
    said = RULE.match(rule)
    if said is None:
        return None
    line, name = int(said["line"]), said["function"]
    found = [path for path in _sources(here) if path.name == said["file"] and _encloses(path, name, line)]
    return _place(found[0], line) if len(found) == 1 else None


def _definition(dotted: str | None, here: Path) -> Place | None:
    """Where a function with a dotted name is defined."""
    module, _, name = (dotted or "").rpartition(".")
    if not module:
        return None
    relative = module.replace(".", "/")
    for path in (here / f"{relative}.py", here / relative / "__init__.py"):
        for function, first, _ in _functions(path):
            if function == name:
                return _place(path, first)
    return None


def _place(path: Path, line: int) -> Place:
    for name in ROOTS:
        root = os.environ.get(name)
        if root and path.resolve().is_relative_to(Path(root).resolve()):
            return Place(path.resolve().relative_to(Path(root).resolve()).as_posix(), line)
    return Place(path.relative_to(Path.cwd()).as_posix(), line)


@lru_cache(maxsize=1)
def _sources(here: Path) -> list[Path]:
    """The Python files below a directory, without those of virtual environments and hidden directories."""
    found = []
    for directory, below, files in os.walk(here):
        below[:] = [
            name
            for name in below
            if not name.startswith(".") and name not in LEFT_OUT and not Path(directory, name, "pyvenv.cfg").exists()
        ]
        found += [Path(directory, name) for name in files if name.endswith(".py")]
    return found


def _encloses(path: Path, name: str, line: int) -> bool:
    """Whether a line of a file is in the function of that qualified name."""
    name = re.sub(r"(\.<locals>)?\.?<\w+>$", "", name)  # what a lambda or a comprehension is in; empty for a module
    functions = [*_functions(path)]
    if not name:
        return bool(functions)
    return any(function == name and first <= line <= last for function, first, last in functions)


def _functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """The functions of a file by qualified name, each with its first and last line."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        prefix, node = waiting.pop()
        for child in ast.iter_child_nodes(node):
            inside = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child.lineno, child.end_lineno or child.lineno
                inside = f"{prefix}{child.name}.<locals>."
            elif isinstance(child, ast.ClassDef):
                inside = f"{prefix}{child.name}."
            waiting.append((inside, child))
