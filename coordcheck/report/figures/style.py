"""What all pictures share: colours, marks, and how they are written.

Colours are those of ``viridis`` (depth) and ``PuOr`` (deviation from the expected slope), which people with any
common colour blindness can tell apart; verdicts are also marked by a sign and a word.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from coordcheck.records.files import write_atomically

VERDICT_COLOURS = {"pass": "#00705a", "fail": "#b3200e", "inconclusive": "#8a6d00", "error": "#555555"}
MARKS = {"explodes": "▲", "vanishes": "▼", "dead": "∅", "nonfinite": "✕", "inconclusive": "?", "pass": ""}
SMALL = 7


def save_figure(figure: Figure, path: Path, config: Mapping[str, Any]) -> None:
    """Writes a PNG atomically, with the configuration as JSON in its metadata ("Description")."""
    description = json.dumps(config, default=str)
    write_atomically(
        path,
        lambda temporary: figure.savefig(
            temporary, dpi=130, metadata={"Software": "coordcheck", "Description": description}
        ),
    )


def depth_colours(modules: Sequence[str]) -> dict[str, tuple[float, float, float, float]]:
    """A colour for each module in forward order, dark at the input and bright at the output."""
    scale = mpl.colormaps["viridis"](np.linspace(0.0, 0.92, max(len(modules), 1)))
    return {module: tuple(scale[i]) for i, module in enumerate(modules)}
