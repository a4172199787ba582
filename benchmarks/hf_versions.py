"""Runs a program under several releases of Hugging Face transformers and prints tables of what it found.

Each release gets a virtual environment with this project in it, made on first use under a directory of your choice::

    python benchmarks/hf_versions.py ~/.cache/coordcheck benchmarks/count_writes.py

The program prints a JSON object: for each of its tables, rows and their cells. The last column is the transformers that
is installed beside this script's interpreter.
"""

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from coordcheck.report.tables import markdown_table

PROJECT = Path(__file__).resolve().parent.parent
# Releases before and after transformers stopped initializing a module more than once (4.27.0). Both run on today's
# torch and numpy; tokenizers 0.13.3 is the last that they accept and has a wheel for Python 3.11.
COMMON = ("torch==2.13.0", "numpy==2.4.6", "tokenizers==0.13.3", "huggingface-hub==0.36.2")
RELEASES = {release: (f"transformers=={release}", *COMMON) for release in ("4.26.1", "4.27.4")}


def environment(release: str, cache: Path) -> Path:
    """The Python of a release's virtual environment, which is made unless a finished one with these pins is there."""
    home = cache / f"transformers-{release}"
    python, done = home / "bin" / "python", home / "pins.txt"
    pins = "\n".join(RELEASES[release])
    if not (done.exists() and done.read_text() == pins):
        subprocess.run(["python3.11", "-m", "venv", "--clear", str(home)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *RELEASES[release], "--editable", str(PROJECT)]
        subprocess.run(install, check=True)
        done.write_text(pins)
    return python


def tables(python: Path, program: Path) -> dict[str, dict[str, str]]:
    """What a program prints, a cell by table and row; its warnings go where this script's go."""
    printed = subprocess.run([str(python), str(program)], check=True, stdout=subprocess.PIPE).stdout
    found: dict[str, dict[str, str]] = json.loads(printed)
    return found


def beside(cells: dict[str, dict[str, str]], title: str) -> str:
    """A Markdown table of cells by release and row; rows that are alike in all releases become one."""
    table = pd.DataFrame(cells).rename_axis(title).reset_index()
    merged = table.groupby(list(cells), sort=False)[title].agg(", ".join).reset_index()
    return markdown_table(merged[[title, *cells]])


def main() -> None:
    """Parses the command line, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="directory of the virtual environments, 1.6 GB each")
    parser.add_argument("program", type=Path, help="Python file that prints a JSON object")
    options = parser.parse_args()
    pythons = {release: environment(release, options.cache) for release in RELEASES}
    pythons[version("transformers")] = Path(sys.executable)
    found = {release: tables(python, options.program) for release, python in pythons.items()}
    for title in found[version("transformers")]:
        print(beside({release: by_title[title] for release, by_title in found.items()}, title), end="\n\n")


if __name__ == "__main__":
    main()
