"""A user's own source: what a dotted name stands for, and a hash of the files that were loaded."""

import hashlib
import inspect
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from coordcheck.records.names import shown
from coordcheck.run.theirs import describe

INSTALLED = {"site-packages", "dist-packages"}  # a user's own one, or another environment's, is none of Python's paths


def import_dotted(option: str, name: str) -> Any:
    """What a dotted name stands for, imported with the current directory on the path.

    Args:
        option: Of the configuration's model, for messages.
        name: Module and attribute.

    Raises:
        ValueError: if there is none.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # of a module that is not ours, whatever it raises while it is loaded
        raise ValueError(
            f"`model.{option}` is a dotted name that Python can import, with {here} on its path; got {name!r} "
            f"({describe(error)}). For example model.{option}=my_package.my_module.{option}."
        ) from error


def import_build(name: str, arguments: Mapping[str, Any], width: int) -> Callable[..., Any]:
    """The function of the width that ``model.build`` names, if it can be called so.

    Args:
        name: Module and attribute.
        arguments: Its keyword arguments, ``model.args``.
        width: One that it may be given.

    Raises:
        ValueError: if it is none, or takes other arguments.
    """
    build = import_dotted("build", name)
    if not callable(build):
        raise ValueError(
            f"`model.build` is the name of a function from width to a model; {name} is {shown(build)}. "
            f"For example model.build=my_package.my_module.build."
        )
    try:
        inspect.signature(build).bind(width, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`model.args` are keyword arguments of {name}, after the width; got {dict(arguments)} ({error}). "
            f"For example model.args.depth=4 for def build(width, depth=2)."
        ) from error
    found: Callable[..., Any] = build
    return found


def source_hash() -> str:
    """A hash of the source files that this process has loaded, libraries and this package left aside.

    Whatever in a user's own code makes numbers is among them.
    """
    homes = (*sysconfig.get_paths().values(), *site.getsitepackages(), str(Path(__file__).parents[1]))
    libraries = {Path(home).resolve() for home in homes}
    digest = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        path = Path(getattr(module, "__file__", None) or "").resolve()
        installed = INSTALLED & {*path.parts} or any(path.is_relative_to(library) for library in libraries)
        if path.suffix == ".py" and path.is_file() and not installed:
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()
