"""The picture of a transfer: loss against learning rate with a line per width, and where the lowest loss goes."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from coordcheck.judge.transfer import TransferCurves
from coordcheck.report.figures.style import SMALL, VERDICT_COLOURS, plain

MARGIN = 1.15  # factor beyond what is shown on a logarithmic axis


def transfer_figure(curves: TransferCurves, control: TransferCurves | None = None) -> Figure:
    """Draws one model, or a model beside its control, and the best learning rate of each against width.

    Args:
        curves: Of the model.
        control: Of what it is compared with.
    """
    shown = [each for each in (curves, control) if each is not None]
    figure = Figure(figsize=(4.4 * (len(shown) + 1), 4.6), layout="constrained")
    panels = figure.subplots(1, len(shown) + 1)
    low, high = _range(shown)
    for axes, each in zip(panels, shown, strict=False):
        _draw_losses(axes, each)
        axes.set_ylim(low, high)
    _draw_optima(panels[-1], shown)
    figure.suptitle(
        plain(f"{curves.name}: {curves.sentence()}", 200),
        color=VERDICT_COLOURS[curves.verdict],
        fontsize=SMALL + 3,
        fontweight="bold",
        wrap=True,
    )
    return figure


def _range(shown: list[TransferCurves]) -> tuple[float, float]:
    """The losses to show: from the lowest of all to what each width has at the edge of its search."""
    finite = np.concatenate([each.losses["loss"].to_numpy(dtype=float) for each in shown])
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _rates(shown: list[TransferCurves]) -> tuple[float, float]:
    """From the smallest learning rate that was tried to the largest, with a margin."""
    rates = np.concatenate([each.losses["lr"].to_numpy(dtype=float) for each in shown])
    return float(rates.min()) / MARGIN, float(rates.max()) * MARGIN


def _draw_losses(axes: Axes, curves: TransferCurves) -> None:
    """Mean loss over seeds against learning rate, a line per width; a cross stands where every run diverged."""
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, max(2, len(curves.widths))))
    for colour, width in zip(colours, curves.widths, strict=False):
        here = curves.losses[curves.losses["width"] == width]
        finite = here[np.isfinite(here["loss"])]
        by_rate = finite.groupby("lr")["loss"].agg(["mean", "min", "max"])
        axes.fill_between(by_rate.index, by_rate["min"], by_rate["max"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            by_rate.index, by_rate["mean"], color=colour, marker="o", markersize=3, linewidth=1.1, label=f"{width}"
        )
        diverged = sorted({*here["lr"]} - {*finite["lr"]})
        axes.plot(
            diverged, [0.97] * len(diverged), "x", color=colour, markersize=5, transform=axes.get_xaxis_transform()
        )
        if width in curves.best.index:
            best = curves.best.loc[width]
            axes.plot(best["lr"], best["loss"], "v", color=colour, markersize=9, markeredgecolor="white")
    axes.set_xlim(*_rates([curves]))
    axes.set_xscale("log", base=10)
    axes.set_title(plain(curves.name), fontsize=SMALL + 2)
    axes.set_xlabel(f"learning rate at width {curves.widths[0]}", fontsize=SMALL + 1)
    axes.set_ylabel("loss", fontsize=SMALL + 1)
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend(title="width", fontsize=SMALL, title_fontsize=SMALL)


def _draw_optima(axes: Axes, shown: list[TransferCurves]) -> None:
    """The best learning rate of each seed against width, with the fitted power of width."""
    for colour, marker, curves in zip(("#00705a", "#b3200e"), "os", shown, strict=False):
        best = curves.best
        axes.plot(curves.optima["width"], curves.optima["lr"], marker, color=colour, markersize=3, alpha=0.45)
        exponent = "not known" if np.isnan(curves.exponent) else f"{curves.exponent:+.2f}"
        interval = "" if not np.isfinite(curves.ci_low) else f" [{curves.ci_low:+.2f}, {curves.ci_high:+.2f}]"
        axes.plot(
            best.index, best["lr"], marker=marker, color=colour, label=f"{plain(curves.name, 40)}: {exponent}{interval}"
        )
    widths = sorted({width for curves in shown for width in curves.widths})
    axes.set(xlim=(widths[0] / MARGIN, widths[-1] * MARGIN), ylim=_rates(shown))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=10)
    axes.xaxis.set_major_locator(FixedLocator([float(width) for width in widths]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("best learning rate, exponent of width", fontsize=SMALL + 2)
    axes.set_xlabel("width", fontsize=SMALL + 1)
    axes.tick_params(labelsize=SMALL, which="both")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend(fontsize=SMALL)
