"""What all pictures share: colours, marks, and how they are written.

Colours are those of ``viridis`` (depth) and ``PuOr`` (deviation from the expected slope), which people with any
common colour blindness can tell apart; verdicts are also marked by a sign and a word, which survive a printer without
colours. What is written takes its colour through :func:`ink`, so that it can be read on a white background and on that
of ``plt.style.use("dark_background")``.
"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from coordcheck.records.files import write_atomically
from coordcheck.records.names import printable

VERDICT_COLOURS = {"pass": "#00705a", "fail": "#b3200e", "inconclusive": "#8a6d00", "error": "#555555"}
MARKS = {"explodes": "▲", "vanishes": "▼", "dead": "∅", "nonfinite": "✕", "inconclusive": "?", "pass": ""}
SMALL = 7
LONGEST_LABEL = 70  # characters of a name
DOTS = 130  # an inch
LEGIBLE = 4.5  # contrast of text with what is behind it (WCAG 2, level AA)

Colour = tuple[float, float, float]


def save_figure(figure: Figure, path: Path, config: Mapping[str, Any]) -> None:
    """Writes a PNG atomically, with the configuration as JSON in its metadata ("Description")."""
    write_atomically(path, lambda temporary: write_png(figure, temporary, config))


def write_png(figure: Figure, target: Path | BinaryIO, config: Mapping[str, Any], dots: int = DOTS) -> None:
    """Writes a PNG to a file or into memory, see :func:`save_figure`."""
    metadata = {"Software": "coordcheck", "Description": json.dumps(config, default=str)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it
        figure.savefig(target, format="png", dpi=dots, metadata=metadata)


def plain(text: object, most: int = LONGEST_LABEL) -> str:
    r"""Text of others in a picture: on one line, and a dollar sign begins no formula.

    >>> plain("a$b$")
    'a\\$b\\$'
    """
    return printable(text, most).replace("$", r"\$")


def text_width(texts: Iterable[str], size: float = SMALL) -> float:
    """Inches that the longest text takes at most, at a font size in points, nearly: a letter is 0.6 as wide as high."""
    return 0.6 * size / 72 * max(map(len, texts), default=0)


def luminance(colour: str | Sequence[float]) -> float:
    """Relative luminance of a colour, 0 for black and 1 for white (WCAG 2)."""
    channels = _channels(colour)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _channels(colour: str | Sequence[float]) -> np.ndarray:
    return np.array(to_rgb(colour if isinstance(colour, str) else (colour[0], colour[1], colour[2])))


def contrast(one: str | Sequence[float], other: str | Sequence[float]) -> float:
    """How well one colour is read on the other, from 1 (not at all) to 21 (WCAG 2)."""
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def background() -> str:
    """The colour behind panels, of matplotlib's style in force."""
    return str(mpl.rcParams["axes.facecolor"])


def is_dark() -> bool:
    """Whether matplotlib's style in force draws bright on dark."""
    return luminance(background()) < 0.2


def ink(colour: str | Sequence[float]) -> Colour:
    """The nearest shade of a colour that can be read as text on the background.

    >>> ink("#b3200e") == to_rgb("#b3200e")
    True
    """
    start, end = _channels(colour), float(is_dark())
    for share in np.linspace(0.0, 1.0, 21):
        shade = start + share * (end - start)
        if contrast(shade, background()) >= LEGIBLE:
            break
    return (float(shade[0]), float(shade[1]), float(shade[2]))


def depth_colours(modules: Sequence[str]) -> dict[str, tuple[float, float, float, float]]:
    """A colour for each module in forward order, dark at the input and bright at the output; all stand out."""
    first, last = (0.25, 1.0) if is_dark() else (0.0, 0.82)
    scale = mpl.colormaps["viridis"](np.linspace(first, last, max(len(modules), 1)))
    return {module: tuple(scale[i]) for i, module in enumerate(modules)}
