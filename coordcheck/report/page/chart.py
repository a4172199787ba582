"""The interactive chart of a page, as a specification of Vega-Lite: a heat map of slopes, and the curves behind it.

Source of the grammar: https://vega.github.io/vega-lite/docs/, version 5 and later.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from coordcheck.judge.finding import format_range
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.verdict import worst_first
from coordcheck.records.names import printable
from coordcheck.records.schema import sizes
from coordcheck.report.figures.heat_map import cell_text
from coordcheck.report.figures.style import VERDICT_COLOURS
from coordcheck.report.tables import format_slope

MOST_CURVES = 2000  # that a page shows, whole modules, those with the worst curves first
LONGEST_NAME = 200
ALL = "all"
CELL = 22  # pixels, the height of a module in the heat map
RUN = ["module", "kind", "step"]
DRAWN = {"pass": 0, "inconclusive": 1}
CURVE_COLOURS = {
    "pass": VERDICT_COLOURS["pass"],
    "explodes": VERDICT_COLOURS["fail"],
    "vanishes": "#5e3c99",
    "dead": "#555555",
    "nonfinite": "#000000",
    "inconclusive": VERDICT_COLOURS["inconclusive"],
}


def shown_slopes(check: Judgement) -> pd.DataFrame:
    """The slopes that a page has room for, in forward order."""
    ranked = worst_first(check.slopes)
    worst = ranked.drop_duplicates("module")["module"]
    counts = check.slopes.groupby("module").size()
    kept = worst[counts.loc[worst].cumsum().to_numpy() <= MOST_CURVES]
    return check.slopes[check.slopes["module"].isin(kept)].sort_values(["order", "kind", "step"], kind="stable")


def curves_of(check: Judgement, slopes: pd.DataFrame) -> list[dict[str, Any]]:
    """Each curve with what is told of it, and its points: the geometric mean over runs at each width."""
    records = check.records.assign(size=sizes(check.records))
    records = records[np.isfinite(records["size"]) & (records["size"] > 0)]
    means = np.exp(np.log(records["size"]).groupby([records[name] for name in [*RUN, "width"]]).mean())
    points: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    for module, kind, step, width, size in means.rename("size").reset_index().itertuples(index=False):
        points.setdefault((module, kind, step), []).append({"width": int(width), "size": float(f"{size:.5g}")})
    ranges = zip(slopes["expected_low"], slopes["expected_high"], strict=True)
    expected = [format_range(low, high) for low, high in ranges]
    curves = [
        {
            "id": i,
            "module": printable(row["module"], LONGEST_NAME),
            "role": "" if pd.isna(row["role"]) else str(row["role"]),
            "kind": str(row["kind"]),
            "step": int(row["step"]),
            "at": at(row["kind"], row["step"]),
            "slope": format_slope(row),
            "short": cell_text(row["verdict"], row["slope"], row["n_zero"] == row["n_runs"]),
            "expected": expected[i],
            "verdict": str(row["verdict"]),
            "source": str(row["source"]),
            "points": points.get((row["module"], row["kind"], row["step"]), []),
        }
        for i, (_, row) in enumerate(slopes.iterrows())
    ]
    # lines are drawn in this order: those at fault over the others
    return sorted(curves, key=lambda curve: DRAWN.get(curve["verdict"], len(DRAWN)))


def at(kind: str, step: int) -> str:
    """A column of the heat map."""
    return f"{kind} {step}"


def _filters(curves: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a reader may choose."""
    chosen = []
    for name in ("kind", "step", "verdict"):
        options = list(dict.fromkeys(str(curve[name]) for curve in curves))
        bind = {"input": "select", "options": [ALL, *options], "name": f"{name} "}
        chosen.append({"name": f"only_{name}", "value": ALL, "bind": bind})
    bind = {"input": "text", "placeholder": "part of a name", "name": "module "}
    return [*chosen, {"name": "only_module", "value": "", "bind": bind}]


CHOSEN = " && ".join(
    [f"(only_{name} == '{ALL}' || toString(datum.{name}) == only_{name})" for name in ("kind", "step", "verdict")]
    + ["(only_module == '' || indexof(lower(datum.module), lower(only_module)) >= 0)"]
)
TOLD = [
    {"field": name, "type": "nominal", "title": title}
    for name, title in (
        ("module", "module"),
        ("at", "kind and step"),
        ("slope", "slope"),
        ("expected", "expected"),
        ("verdict", "verdict"),
        ("role", "role"),
        ("source", "who says so"),
    )
]


COLOUR = {
    "field": "verdict",
    "type": "nominal",
    "scale": {"domain": list(CURVE_COLOURS), "range": list(CURVE_COLOURS.values())},
    "legend": {"orient": "top", "title": None},
}


def specification(check: Judgement, slopes: pd.DataFrame) -> dict[str, Any]:
    """The chart: a click on a cell of the heat map shows its curve alone, a click beside the cells all curves."""
    curves = curves_of(check, slopes)
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": curves},
        "params": _filters(curves),
        "hconcat": [_heat_map(slopes), _lines(check)],
        "resolve": {"legend": {"color": "shared"}},
        "config": {"font": "system-ui, sans-serif", "view": {"stroke": None}},
    }


def _heat_map(slopes: pd.DataFrame) -> dict[str, Any]:
    """A row for each module in forward order, a column for each kind and step."""
    modules = [printable(module, LONGEST_NAME) for module in slopes["module"].unique()]
    places = slopes[["kind", "step"]].drop_duplicates().sort_values(["kind", "step"])
    columns = [at(kind, step) for kind, step in places.itertuples(index=False)]
    dimmed = {"condition": {"param": "picked", "value": 0.9}, "value": 0.25}
    return {
        "transform": [{"filter": CHOSEN}],
        "width": {"step": 58},
        "height": {"step": CELL},
        "title": {"text": "Slope of each module: click a cell to see its curve alone", "anchor": "start"},
        "encoding": {
            "x": {"field": "at", "type": "ordinal", "sort": columns, "title": None, "axis": {"orient": "top"}},
            "y": {"field": "module", "type": "ordinal", "sort": modules, "title": None, "axis": {"labelLimit": 260}},
        },
        "layer": [
            {
                "params": [{"name": "picked", "select": {"type": "point", "fields": ["id"]}}],
                "mark": {"type": "rect", "stroke": "white", "cursor": "pointer"},
                "encoding": {"color": COLOUR, "tooltip": TOLD, "opacity": dimmed},
            },
            {
                "mark": {"type": "text", "fontSize": 10, "color": "white", "fontWeight": "bold"},
                "encoding": {"text": {"field": "short", "type": "nominal"}},
            },
        ],
    }


def _lines(check: Judgement) -> dict[str, Any]:
    """A line for each curve that is chosen."""
    widths = sorted(int(width) for width in check.records["width"].unique())
    return {
        "transform": [{"filter": CHOSEN}, {"filter": {"param": "picked"}}, {"flatten": ["points"], "as": ["point"]}],
        "width": 520,
        "height": 420,
        "title": {"text": f"Size against {check.axis}", "anchor": "start"},
        "encoding": {
            "x": {
                "field": "point.width",
                "type": "quantitative",
                "title": check.axis,
                "scale": {"type": "log", "base": 2, "domain": [widths[0], widths[-1]]},
                "axis": {"values": [*widths], "format": "d", "grid": False},
            },
            "y": {
                "field": "point.size",
                "type": "quantitative",
                "title": "size of a typical entry",
                "scale": {"type": "log", "zero": False},
                "axis": {"format": ".1e"},
            },
            "detail": {"field": "id", "type": "nominal"},
            "color": COLOUR,
            "tooltip": TOLD,
        },
        "layer": [{"mark": {"type": "line", "strokeWidth": 1.6}}, {"mark": {"type": "point", "filled": True}}],
    }
