"""Figures: `reconstructions`, `residual_against_step`, `jacobian_spectrum`, `credible_bands`, `coverage` and others.

Every function returns a `matplotlib.figure.Figure` and neither shows nor saves it: `figure.savefig("a.png", dpi=200)`.
Figures are one column (3.5 inches) wide, and lines differ in dash as well as in colour.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

from ._solution import History

# Colours of M. Okabe and K. Ito, "Color Universal Design" (2008), which stay apart for every kind of colour vision.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2))]
_WIDTH = 3.5


def _figure(height: float, **grid: Any) -> tuple[Any, Any]:
    """A figure outside pyplot, hence outside any global state, and its axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib: pip install "pinv_jax[plot]"') from error
    figure = Figure(figsize=(_WIDTH, height), dpi=200, layout="constrained")
    return figure, figure.subplots(**grid)


def _style(index: int) -> dict[str, Any]:
    # Seven colours and, after each round of them, the dashes shifted by one: 49 lines before a pair repeats.
    dash = _DASHES[(index + index // len(_COLOURS)) % len(_DASHES)]
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": dash, "linewidth": 1.2}


def _finish(axes: Any, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel(ylabel, fontsize=8)
    axes.tick_params(labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(figure: Any, *axes: Any) -> None:
    """One legend under the axes, where it covers no curve whatever their number."""
    both = [each.get_legend_handles_labels() for each in axes]
    handles, labels = [h for hs, _ in both for h in hs], [text for _, texts in both for text in texts]
    columns = 1 if max(map(len, labels)) > 30 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)


def reconstructions(
    truths: ArrayLike,
    reconstructions: Mapping[str, ArrayLike],
    data: ArrayLike,
    *,
    predictions: ArrayLike | None = None,
    num: int = 3,
    xlabel: str = "grid point",
    unknown: str = "unknown x",
    observed: str = "data y",
) -> Any:
    """The first examples: truth against reconstructions, and the data they were made from.

    Args:
        truths: unknowns, shape `(n, m)` for curves or `(n, height, width)` for images.
        reconstructions: the same by name.
        data: observations, shape `(n, k)` or `(n, height, width)`.
        predictions: optional `f(truth)`, shaped like `data`: what the data would be without noise.
        num: how many examples are drawn.
        xlabel: label with unit of the horizontal axis of curves.
        unknown: label with unit of `x`.
        observed: label with unit of `y`.

    Returns:
        A `matplotlib.figure.Figure`: for curves two rows, `x` over `y`; for images a row per name.

    Raises:
        ValueError: if the arrays are neither curves nor images, or a reconstruction has another shape than the truth.
    """
    truth, observation = np.asarray(truths), np.asarray(data)
    guesses = {name: np.asarray(guess) for name, guess in reconstructions.items()}
    if truth.ndim not in (2, 3) or observation.ndim not in (2, 3):
        raise ValueError(
            f"truths {truth.shape} and data {observation.shape}: expected (n, size) for curves or (n, height, width) "
            "for images; give a single example its leading axis with x[None]."
        )
    for name, guess in guesses.items():
        if guess.shape != truth.shape:
            raise ValueError(f"reconstruction {name!r} has shape {guess.shape}, the truth {truth.shape}.")
    num = min(num, len(truth))
    if truth.ndim == 3 or observation.ndim == 3:
        return _images({f"truth: {unknown}": truth, **guesses, observed: observation}, num)

    clean = None if predictions is None else np.asarray(predictions)
    figure, axes = _figure(3.3 + 0.08 * len(guesses), nrows=2, ncols=num, sharex="row", sharey="row", squeeze=False)
    for column in range(num):
        upper, lower = axes[0, column], axes[1, column]
        upper.plot(truth[column], color="0.6", linewidth=2.5, label="truth")
        for index, (name, guess) in enumerate(guesses.items()):
            upper.plot(guess[column], label=name, **_style(index))
        if clean is not None:
            lower.plot(clean[column], color="0.6", linewidth=2.5, label="without noise")
        lower.plot(observation[column], ".", color="black", markersize=2.5, label="data")
        _finish(upper, "", unknown if column == 0 else "")
        _finish(lower, xlabel if column == num // 2 else "", observed if column == 0 else "")
        upper.tick_params(labelbottom=upper.get_xlim() != lower.get_xlim())
    _legend(figure, *axes[:, 0])
    return figure


def image_grid(
    rows: Mapping[str, ArrayLike],
    *,
    limits: tuple[float, float] | None = None,
    titles: Sequence[str] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Grey images in rows by name, side by side on one scale: black is the least value, white the largest.

    Args:
        rows: images by name, shape `(n, height, width)`, or `(n, height, width, 3)` in colour.
        limits: the values shown as black and white, and beyond; by default the extremes of the first row.
        titles: of the columns.
        captions: by name of a row, a text above each of its images.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: a row is no stack of images, or has another number of them than the first.
    """
    stacks = {name: np.asarray(stack) for name, stack in rows.items()}
    for name, stack in stacks.items():
        if stack.ndim not in (3, 4) or len(stack) != len(next(iter(stacks.values()))):
            raise ValueError(
                f"row {name!r} has shape {stack.shape}; expected (n, height, width), or a last axis for three colours, "
                "with the same n in every row."
            )
    first = next(iter(stacks.values()))
    low, high = limits or (float(np.nanmin(first)), float(np.nanmax(first)))
    num, aspect = len(first), first.shape[1] / first.shape[2]
    figure, axes = _figure(
        (_WIDTH - 0.6) / num * aspect * len(stacks) + 0.2, nrows=len(stacks), ncols=num, squeeze=False
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    for row, (name, stack) in enumerate(stacks.items()):
        for column in range(num):
            shown = np.clip((stack[column] - low) / (high - low), 0, 1)  # colours know no limits of their own
            axes[row, column].imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
            for spine in axes[row, column].spines.values():
                spine.set_linewidth(0.3)
        axes[row, 0].set_ylabel(name, fontsize=5, rotation=0, ha="right", va="center")
        for axis, caption in zip(axes[row], (captions or {}).get(name, ()), strict=False):
            axis.set_title(caption, fontsize=5, pad=1.5)
    for axis, title in zip(axes[0], titles or (), strict=False):
        axis.set_title(title, fontsize=6, pad=2)
    return figure


def _images(rows: Mapping[str, np.ndarray], num: int) -> Any:
    """One row per name; rows of equal shape share the colour scale of the first of them."""
    figure, axes = _figure(1.1 * len(rows) * 3 / max(num, 3) + 0.4, nrows=len(rows), ncols=num, squeeze=False)
    limits: dict[tuple[int, ...], tuple[float, float]] = {}
    last = list(rows)[-1]
    for row, (name, images) in enumerate(rows.items()):
        # The data have their own unit, even where their shape is that of the unknown.
        key = (-1,) if name == last else images.shape[1:]
        low, high = limits.setdefault(key, (float(np.nanmin(images[:num])), float(np.nanmax(images[:num]))))
        for column in range(num):
            image = images[column] if images.ndim == 3 else images[column][None]
            aspect = "equal" if images.ndim == 3 else "auto"  # curves beside images become stripes
            drawn = axes[row, column].imshow(image, cmap="viridis", vmin=low, vmax=high, aspect=aspect)
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
        axes[row, 0].set_ylabel(name, fontsize=7)
        figure.colorbar(drawn, ax=list(axes[row])).ax.tick_params(labelsize=6)
    return figure


def _carried_forward(record: np.ndarray) -> np.ndarray:
    """Fills the unused slots of each row with its last value: a finished solve stays where it ended."""
    slots = np.where(np.isfinite(record), np.arange(record.shape[1]), 0)
    return np.take_along_axis(record, np.maximum.accumulate(slots, axis=1), axis=1)


def residual_against_step(
    histories: Mapping[str, History], *, tolerance: float | None = None, unit: str = "units of y"
) -> Any:
    """Residual after every accepted step: the median over the batch, with the band between the quartiles.

    A solve that has ended counts with its last residual from then on; one without a finite start is left out.

    Args:
        histories: the `history` of a `Solution`, single or batched, by name of solver.
        tolerance: a residual to draw as a horizontal line.
        unit: unit of the residual.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, axes = _figure(3.0)
    longest = 1
    for index, (name, history) in enumerate(histories.items()):
        record = np.asarray(history.residual_rms)
        record = record.reshape(-1, record.shape[-1])
        record = record[np.isfinite(record[:, 0])]
        if not len(record):
            axes.plot([], [], label=f"{name} (no finite start)", **_style(index))
            continue
        used = 1 + int(np.max(np.nonzero(np.isfinite(record).any(axis=0))[0]))
        longest = max(longest, used - 1)
        lower, median, upper = np.quantile(_carried_forward(record)[:, :used], [0.25, 0.5, 0.75], axis=0)
        marker = "o" if used <= 30 else ""  # a solve that ends where it started would be an invisible line
        axes.plot(np.arange(used), median, marker=marker, markersize=2.5, label=name, **_style(index))
        axes.fill_between(np.arange(used), lower, upper, color=_style(index)["color"], alpha=0.15, linewidth=0)
    if tolerance is not None:
        axes.axhline(tolerance, color="0.4", linewidth=0.8, label=f"tolerance {tolerance:.3g}")
    axes.set_yscale("log", nonpositive="mask")
    if longest > 40:
        axes.set_xscale("symlog", linthresh=1)
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(left=-0.03 * min(longest, 5))
    _finish(axes, "accepted steps", f"RMS residual ({unit})")
    _legend(figure, axes)
    return figure


def success_against_tolerance(residuals: Mapping[str, ArrayLike], tolerance: float, *, unit: str = "units of y") -> Any:
    """Share of observations met, as a function of the tolerance asked for.

    Args:
        residuals: final RMS residuals of a batch, shape `(n,)`, by name of solver; NaN counts as never met.
        tolerance: the tolerance that was asked for, drawn as a vertical line.
        unit: unit of the residual.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    batches = {name: np.sort(np.ravel(np.asarray(batch))) for name, batch in residuals.items()}
    positive = np.concatenate([[tolerance], *(b[np.isfinite(b) & (b > 0)] for b in batches.values())])
    low, high = positive.min() / 1.5, positive.max() * 1.5
    figure, axes = _figure(3.0)
    for index, (name, batch) in enumerate(batches.items()):
        met = np.maximum(batch[np.isfinite(batch)], low)  # an exact zero has no place on a logarithmic axis
        share = 100 * np.arange(len(met) + 1) / max(len(batch), 1)
        axes.step([low, *met, high], [*share, share[-1]], where="post", label=name, **_style(index))
    axes.axvline(tolerance, color="0.4", linewidth=0.8, label=f"tolerance {tolerance:.3g}")
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(-3, 103)
    _finish(axes, f"tolerance on the RMS residual ({unit})", "observations met (%)")
    _legend(figure, axes)
    return figure


def labelled_points(
    panels: Mapping[str, Mapping[str, tuple[float, float]]], *, xlabel: str = "{}", ylabel: str = ""
) -> Any:
    """Points with a name, in panels side by side that share the vertical axis; a name has one colour in all of them.

    Args:
        panels: by title, `(x, y)` by name.
        xlabel: of every panel; `{}` becomes its title.
        ylabel: of all.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, axes = _figure(3.2, ncols=len(panels), sharey=True, squeeze=False)
    for panel, (title, points) in zip(axes[0], panels.items(), strict=True):
        for index, (name, (x, y)) in enumerate(points.items()):
            marker = "osD^vPX"[index // len(_COLOURS) % 7]
            panel.plot(x, y, marker, color=_COLOURS[index % len(_COLOURS)], markersize=5, label=name)
        _finish(panel, xlabel.format(title), ylabel if panel is axes[0][0] else "")
    _legend(figure, axes[0][0])
    return figure


def jacobian_spectrum(singular_values: ArrayLike, noise_level: float, *, unit: str = "units of y per unit of x") -> Any:
    """Singular values of the Jacobian, with the noise level below which a direction cannot be recovered.

    Args:
        singular_values: shape `(k,)`, or `(n, k)` at `n` points, drawn as median and full range.
        noise_level: noise standard deviation in units of `y`, per unit of `x` (divide by the prior's standard deviation
            where that is not one).
        unit: unit of the singular values.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    values = -np.sort(-np.atleast_2d(np.asarray(singular_values)), axis=-1)
    number, median = np.arange(1, values.shape[1] + 1), np.median(values, axis=0)
    figure, axes = _figure(3.1)
    axes.plot(number, median, "o", color=_COLOURS[0], markersize=3, label="singular values")
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        label = f"range over {len(values)} points"
        axes.fill_between(number, low, high, color=_COLOURS[0], alpha=0.2, linewidth=0, label=label)
    axes.axhline(noise_level, color=_COLOURS[1], linestyle="--", linewidth=1, label=f"noise level {noise_level:.3g}")
    axes.set_yscale("log", nonpositive="mask")
    # What is far below the noise is rounding error as often as not, and would squeeze the rest.
    floor = 1e-4 * min(noise_level, float(median.max()))
    axes.set_ylim(max(values.min() / 3, floor), 3 * max(values.max(), noise_level))
    above = int((median > noise_level).sum())
    axes.set_title(f"{above} of {len(number)} directions stand above the noise", fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(axes, "index", f"singular value ({unit})")
    _legend(figure, axes)
    return figure


def credible_bands(
    truths: ArrayLike,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    level: float,
    num: int = 3,
    xlabel: str = "grid point",
    unknown: str = "unknown x",
) -> Any:
    """The first examples: the truth, and the intervals that should hold it with probability `level`, point by point.

    Args:
        truths: curves, shape `(n, m)`.
        bands: lower and upper ends by name, each shaped like `truths`.
        level: of the intervals, between zero and one.
        num: how many examples are drawn.
        xlabel: label with unit of the horizontal axis.
        unknown: label with unit of `x`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the truths are no curves, or a band has another shape.
    """
    truth = np.asarray(truths)
    ends = {name: tuple(np.asarray(end) for end in band) for name, band in bands.items()}
    if truth.ndim != 2 or any(end.shape != truth.shape for band in ends.values() for end in band):
        shapes = [end.shape for band in ends.values() for end in band]
        raise ValueError(f"truths {truth.shape}, ends of bands {shapes}: expected (n, size) for all of them.")
    num = min(num, len(truth))
    figure, axes = _figure(2.2, ncols=num, sharey=True, squeeze=False)
    for column, panel in enumerate(axes[0]):
        for index, (name, (lower, upper)) in enumerate(ends.items()):
            label, colour = f"{name}, {100 * level:.3g} %", _style(index)["color"]
            points = np.arange(truth.shape[1])
            panel.fill_between(points, lower[column], upper[column], color=colour, alpha=0.2, linewidth=0, label=label)
            for end in (lower, upper):
                panel.plot(points, end[column], **_style(index) | {"linewidth": 0.7})
        panel.plot(truth[column], color="black", linewidth=1.2, label="truth")
        _finish(panel, xlabel if column == num // 2 else "", unknown if column == 0 else "")
    _legend(figure, axes[0, 0])
    return figure


def coverage(levels: Sequence[float] | ArrayLike, covered: Mapping[str, Sequence[float] | ArrayLike]) -> Any:
    """How often intervals hold the truth, against how often they say so; calibrated ones lie on the diagonal.

    Args:
        levels: of the intervals, between zero and one, shape `(k,)`.
        covered: the share of truths inside, shape `(k,)`, by name.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    nominal = 100 * np.asarray(levels)
    figure, axes = _figure(3.2)
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=0.8, label="calibrated")
    for index, (name, shares) in enumerate(covered.items()):
        axes.plot(nominal, 100 * np.asarray(shares), marker="o", markersize=3, label=name, **_style(index))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_aspect("equal")
    _finish(axes, "level of the intervals (%)", "truths inside (%)")
    _legend(figure, axes)
    return figure
