"""Figures of curves in panels side by side: `Panel`, `draw`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import ArrayLike

STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#000000", "-"))
"""Colours of M. Okabe and K. Ito, "Color Universal Design" (2008)."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        lines: `(x, y)` by name.
        xlabel, ylabel: of its axes.
        log: whether both axes are logarithmic.
    """

    lines: Mapping[str, tuple[ArrayLike, ArrayLike]]
    xlabel: str
    ylabel: str
    log: bool = False


def draw(panels: Sequence[Panel]) -> Any:
    """All panels, each with its legend under it, as a `matplotlib.figure.Figure`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 * len(panels), 3.0), dpi=200, layout="constrained")
    for axes, panel in zip(figure.subplots(ncols=len(panels), squeeze=False)[0], panels, strict=True):
        for (name, (x, y)), (colour, dash) in zip(panel.lines.items(), STYLES, strict=False):
            (axes.loglog if panel.log else axes.plot)(x, y, label=name, color=colour, linestyle=dash, linewidth=1.1)
        axes.set_xlabel(panel.xlabel, fontsize=8)
        axes.set_ylabel(panel.ylabel, fontsize=8)
        axes.tick_params(which="both", labelsize=7)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(fontsize=6, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    return figure
