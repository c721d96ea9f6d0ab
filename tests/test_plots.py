import builtins
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pinv_jax import plots
from pinv_jax._solution import History


def history(residual_rms):
    """A history of `n` solves; as `vmap` does, it is put together without the checks of the constructor."""
    record = jnp.asarray(residual_rms)
    module = object.__new__(History)
    for name in ("objective", "residual_rms", "step_size", "rjcp"):
        object.__setattr__(module, name, record)
    return module


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines()}


def check_rendered(figure, path):
    canvas = FigureCanvasAgg(figure)
    figure.savefig(path)
    assert path.stat().st_size > 5000
    width, _ = figure.get_size_inches()
    assert width == pytest.approx(3.5)
    renderer = canvas.get_renderer()
    for legend in figure.legends:  # nothing is cut off at the border
        box = legend.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    for axes in figure.axes:
        box = axes.get_tightbbox(renderer)
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1


NAN = np.nan


def test_residuals_are_carried_forward_and_summarised(tmp_path):
    record = [[8.0, 4.0, 2.0, 1.0], [8.0, 6.0, NAN, NAN], [NAN, NAN, NAN, NAN], [8.0, 2.0, 1.0, NAN]]
    figure = plots.residual_against_step(
        {"three": history(record), "single": history([3.0, NAN, NAN]), "dead": history([[NAN] * 3])}, tolerance=0.5
    )
    drawn = lines(figure)
    assert np.allclose(
        drawn["three"].get_ydata(), [8, 4, 2, 1]
    )  # medians of (8, 8, 8), (4, 6, 2), (2, 6, 1), (1, 6, 1)
    assert np.allclose(drawn["single"].get_xdata(), [0])
    assert "dead (no finite start)" in drawn
    assert "tolerance 0.5" in drawn
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_xlabel() == "accepted steps"
    check_rendered(figure, tmp_path / "a.png")


def test_long_histories_get_a_logarithmic_axis(tmp_path):
    figure = plots.residual_against_step({"slow": history(np.geomspace(1, 1e-3, 101)[None])}, unit="K")
    assert figure.axes[0].get_xscale() == "symlog"
    assert figure.axes[0].get_ylabel() == "RMS residual (K)"
    check_rendered(figure, tmp_path / "a.png")


def test_success_counts_failures_against_the_solver(tmp_path):
    figure = plots.success_against_tolerance({"a": np.array([0.1, 0.2, NAN, 0.4, 0.0]), "b": np.array([NAN])}, 0.3)
    x, y = lines(figure)["a"].get_data()
    assert [y[np.nonzero(np.asarray(x) <= tolerance)[0][-1]] for tolerance in (0.09, 0.15, 0.3, 0.45)] == pytest.approx(
        [20, 40, 60, 80]
    )
    assert max(lines(figure)["b"].get_ydata()) == 0
    check_rendered(figure, tmp_path / "a.png")


def test_spectrum_counts_directions_above_the_noise(tmp_path):
    values = np.array([1.0, 1e-1, 1e-4, 0.0])
    figure = plots.jacobian_spectrum(values[::-1], 0.01)
    assert np.allclose(lines(figure)["singular values"].get_ydata(), values)
    assert figure.axes[0].get_title() == "2 of 4 directions stand above the noise"
    check_rendered(figure, tmp_path / "a.png")
    figure = plots.jacobian_spectrum(jnp.stack([values, 2 * values, 3 * values]), 0.01)
    assert np.allclose(lines(figure)["singular values"].get_ydata(), 2 * values)
    check_rendered(figure, tmp_path / "b.png")


def test_curves_are_drawn_over_their_data(tmp_path):
    truth, data = np.arange(20.0).reshape(4, 5), jnp.ones((4, 7))
    figure = plots.reconstructions(
        truth, {"a solver": truth + 1, "another": jnp.asarray(truth)}, data, predictions=data, num=3, xlabel="x (m)"
    )
    assert len(figure.axes) == 6
    assert np.allclose(lines(figure)["a solver"].get_ydata(), truth[0] + 1)
    assert np.allclose(figure.axes[4].get_lines()[-1].get_ydata(), 1)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "truth", "a solver", "another", "without noise", "data",
    ]  # fmt: skip
    check_rendered(figure, tmp_path / "a.png")
    assert len(plots.reconstructions(truth[:1], {}, data[:1]).axes) == 2


@pytest.mark.parametrize("observed", [(4, 8, 8), (4, 6, 6), (4, 9)], ids=["same size", "other size", "curves"])
def test_images_share_the_scale_of_the_truth(observed, tmp_path):
    truth = np.random.default_rng(0).normal(size=(4, 8, 8))
    figure = plots.reconstructions(
        truth, {"a": 2 * truth}, 5 * np.ones(observed) + np.arange(4).reshape(4, *[1] * (len(observed) - 1)), num=3
    )
    limits = [axes.get_images()[0].get_clim() for axes in figure.axes if axes.get_images()]
    assert limits[:6] == [(truth[:3].min(), truth[:3].max())] * 6
    assert limits[6:] == [(5.0, 7.0)] * 3
    check_rendered(figure, tmp_path / "a.png")


def test_bad_input_to_reconstructions():
    with pytest.raises(ValueError, match=r"expected \(n, size\) for curves.*x\[None\]"):
        plots.reconstructions(np.ones(5), {}, np.ones(5))
    with pytest.raises(ValueError, match=r"reconstruction 'a' has shape \(2, 4\), the truth \(2, 5\)"):
        plots.reconstructions(np.ones((2, 5)), {"a": np.ones((2, 4))}, np.ones((2, 5)))


def test_bands_and_their_coverage(tmp_path):
    truth = np.sin(np.arange(20.0).reshape(4, 5))
    figure = plots.credible_bands(truth, {"samples": (truth - 0.2, truth + 0.1)}, level=0.9, num=3)
    assert len(figure.axes) == 3
    assert np.allclose(lines(figure)["truth"].get_ydata(), truth[0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["samples, 90 %", "truth"]
    check_rendered(figure, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"truths \(4, 5\), ends of bands \[\(4, 5\), \(5,\)\]"):
        plots.credible_bands(truth, {"samples": (truth, truth[0])}, level=0.9)
    figure = plots.coverage([0.5, 0.9], {"a": [0.4, 0.8], "b": jnp.array([0.5, 0.9])})
    assert np.allclose(lines(figure)["a"].get_data(), [[50, 90], [40, 80]])
    check_rendered(figure, tmp_path / "b.png")


def test_a_missing_matplotlib_is_named_with_its_cure(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "pinv_jax\[plot\]"'):
        plots.jacobian_spectrum(np.ones(3), 0.1)


def test_neither_matplotlib_nor_pyplot_is_imported_early():
    program = (
        "import sys, numpy as np, pinv_jax, pinv_jax.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.jacobian_spectrum(np.ones(3), 0.1)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
