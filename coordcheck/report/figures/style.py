"""What all pictures share: colours, marks, and how they are written.

Colours are those of ``viridis`` (depth) and ``PuOr`` (deviation from the expected slope), which people with any
common colour blindness can tell apart; verdicts are also marked by a sign and a word.
"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from coordcheck.records.files import write_atomically
from coordcheck.records.names import printable

VERDICT_COLOURS = {"pass": "#00705a", "fail": "#b3200e", "inconclusive": "#8a6d00", "error": "#555555"}
MARKS = {"explodes": "▲", "vanishes": "▼", "dead": "∅", "nonfinite": "✕", "inconclusive": "?", "pass": ""}
SMALL = 7
LONGEST_LABEL = 70  # characters of a name


def save_figure(figure: Figure, path: Path, config: Mapping[str, Any]) -> None:
    """Writes a PNG atomically, with the configuration as JSON in its metadata ("Description")."""
    description = json.dumps(config, default=str)

    def write(temporary: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it
            figure.savefig(temporary, dpi=130, metadata={"Software": "coordcheck", "Description": description})

    write_atomically(path, write)


def plain(text: object, most: int = LONGEST_LABEL) -> str:
    r"""Text of others in a picture: on one line, and a dollar sign begins no formula.

    >>> plain("a$b$")
    'a\\$b\\$'
    """
    return printable(text, most).replace("$", r"\$")


def text_width(texts: Iterable[str], size: float = SMALL) -> float:
    """Inches that the longest text takes at most, at a font size in points, nearly: a letter is 0.6 as wide as high."""
    return 0.6 * size / 72 * max(map(len, texts), default=0)


def depth_colours(modules: Sequence[str]) -> dict[str, tuple[float, float, float, float]]:
    """A colour for each module in forward order, dark at the input and bright at the output."""
    scale = mpl.colormaps["viridis"](np.linspace(0.0, 0.92, max(len(modules), 1)))
    return {module: tuple(scale[i]) for i, module in enumerate(modules)}
