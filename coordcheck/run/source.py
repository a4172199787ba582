"""A user's own source: what a dotted name stands for, and a hash of the files that were loaded."""

import hashlib
import os
import site
import sys
import sysconfig
from importlib import import_module
from pathlib import Path
from typing import Any

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
