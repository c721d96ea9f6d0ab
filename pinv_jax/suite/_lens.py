"""Photographs through lenses and sensors: pseudo-inverse and back-projection, with and without the sensor curve."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import plots
from ..maps import Gamma, VaryingBlur
from ..solvers import clipping_box, nlbp, nlbp_interval, quantisation_box
from ._lens_camera import (
    COLOUR,
    GREY,
    Camera,
    apply,
    blurred,
    compare,
    distorted,
    exposed,
    image_shape,
    photographs,
    quality,
    relative,
    saturating,
    shown,
    spectral_norm,
)
from ._lens_saturation import saturation
from ._study import Bench, Findings, Study

SHOWN = (0, 1, 4, 5)
"""The photographs of the figures: two in colour, two in grey."""


def observe(camera: Camera, x: Float[Array, "c H W"]) -> Array:
    """`f(x)`."""
    return camera.f(x)


def observation(camera: Camera, y: Float[Array, "c h w"]) -> Array:
    """The observation as it is, on the grid of the photograph."""
    return camera.enlarge(y)


def guess(camera: Camera, y: Float[Array, "c h w"]) -> Array:
    """The smooth guess."""
    return camera.guess(y)


def linear(camera: Camera, y: Float[Array, "c h w"]) -> Array:
    """`A^+ y`."""
    return camera.optics.pinv(y)


def curve_last(camera: Camera, x: Float[Array, "c H W"], y: Float[Array, "c h w"]) -> Array:
    """`curve^-1(A^+ y)`: both undone, in the wrong order."""
    del y
    return camera.curve_of_x.pinv(x)


def linear_projection(camera: Camera, x: Float[Array, "c H W"], y: Float[Array, "c h w"]) -> Array:
    """`x + A^+ (y - A x)`."""
    return nlbp(camera.optics, x, y)


def naive(camera: Camera, x: Float[Array, "c H W"], y: Float[Array, "c h w"]) -> Array:
    """`x + pinv(y - f(x))`, right for linear maps only."""
    return x + camera.f.pinv(y - camera.f(x))


def pinv(camera: Camera, y: Float[Array, "c h w"]) -> Array:
    """The pseudo-inverse of the whole camera."""
    return camera.f.pinv(y)


def projection(camera: Camera, x: Float[Array, "c H W"], y: Float[Array, "c h w"]) -> Array:
    """Non-linear back-projection."""
    return nlbp(camera.f, x, y)


def inconsistency(camera: Camera, x: Float[Array, "c H W"], y: Float[Array, "c h w"]) -> Array:
    """`|f(x) - y| / |y|`."""
    return relative(camera.f(x) - y, y)


METHODS = {
    "y enlarged, curve ignored": (observation, None),
    "y enlarged, curve undone": (guess, None),
    "linear pinv, curve ignored": (linear, None),
    "linear pinv, curve undone last": (curve_last, "linear pinv, curve ignored"),
    "linear back-projection, curve ignored": (linear_projection, "y enlarged, curve ignored"),
    "naive x + pinv(y - f(x))": (naive, "y enlarged, curve undone"),
    "pinv": (pinv, None),
    "NLBP of the linear result": (projection, "linear back-projection, curve ignored"),
    "NLBP of the smooth guess": (projection, "y enlarged, curve undone"),
}
"""What is computed, and from which start; the smooth guess is `y` enlarged with the curve undone."""


def _groups(bench: Bench, size: int) -> list[Float[Array, "n c h w"]]:
    """The colour photographs and the grey ones; two of the former alone in a quick run."""
    if bench.quick:
        return [photographs(COLOUR[:2], size, bench.dtype)]
    return [photographs(names, size, bench.dtype) for names in (COLOUR, GREY)]


def _compared(cameras: Sequence[Camera], groups: Sequence[Float[Array, "n c h w"]]) -> Findings:
    """All methods on noise-free observations."""
    data = [apply(observe, camera, x) for camera, x in zip(cameras, groups, strict=True)]
    rows, estimates, levels = compare(
        METHODS, [(camera, x, (y,)) for camera, x, y in zip(cameras, groups, data, strict=True)], inconsistency
    )
    by_name = {row["method"]: row for row in rows}
    gain = {
        "pinv over linear pinv, dB": ("pinv", "linear pinv, curve ignored"),
        "NLBP over linear back-projection, dB": ("NLBP of the linear result", "linear back-projection, curve ignored"),
    }
    measures = {what: by_name[a]["PSNR dB"] - by_name[b]["PSNR dB"] for what, (a, b) in gain.items()}
    measures["photographs"] = sum(len(x) for x in groups)
    chosen = [index for index in SHOWN if index < measures["photographs"]]

    def pictures(parts: Sequence[Array]) -> np.ndarray:
        return np.concatenate([shown(part) for part in parts])[chosen]

    arrays = {"photograph": pictures(groups), "observation": pictures(data)}
    for name in METHODS:
        arrays |= {name: pictures(estimates[name]), f"PSNR of {name}": levels[name][chosen]}
    return Findings(rows, measures, arrays)


def blur(bench: Bench) -> Findings:
    """A blur that varies over the image, half as many pixels each way, and a sensor that saturates."""
    groups = _groups(bench, 32 if bench.quick else 96)
    curve = functools.partial(saturating, dtype=bench.dtype)
    cameras = [blurred(image_shape(x), 1.2, 2, curve, bench.dtype) for x in groups]
    return _compared(cameras, groups)


def fish_eye(bench: Bench) -> Findings:
    """A fish-eye, and the tone curve of photographs."""
    size, out_size = (32, 20) if bench.quick else (96, 60)
    groups = _groups(bench, size)
    cameras = [distorted(image_shape(x), out_size, 0.2, bench.dtype) for x in groups]
    return _compared(cameras, groups)


@jax.jit
def condition_number(camera: Camera) -> Float[Array, ""]:
    """The largest over the smallest singular value of the optics."""
    if isinstance(camera.linear, VaryingBlur):
        return camera.linear.condition_number()
    x = jnp.zeros(camera.linear.in_structure().shape, camera.linear.in_structure().dtype)
    return spectral_norm(camera.linear, x) / camera.linear.smallest_singular_value()  # pyright: ignore


def box_projection(camera: Camera, x: Array, y: Array, lower: Array, upper: Array) -> Array:
    """Back-projection onto the box."""
    del y
    return nlbp_interval(camera.f, x, lower, upper)


def box_rounds(camera: Camera, x: Array, y: Array, lower: Array, upper: Array) -> Array:
    """The same, in turns with clipping `x` to [0, 1]."""
    del y
    return jax.lax.fori_loop(0, 20, lambda _, x: nlbp_interval(camera.f, jnp.clip(x, 0, 1), lower, upper), x)


def outside(camera: Camera, x: Array, y: Array, lower: Array, upper: Array) -> Array:
    """The distance of `f(x)` to the box, relative to `y`."""
    seen = camera.f(x)
    return relative(seen - jnp.clip(seen, lower, upper), y)


BOXED = {
    "y, curve undone": (lambda camera, y, lower, upper: camera.guess(y), None),
    "pinv of y": (lambda camera, y, lower, upper: camera.f.pinv(y), None),
    "NLBP onto y": (lambda camera, x, y, lower, upper: nlbp(camera.f, x, y), "y, curve undone"),
    "NLBP onto the box": (box_projection, "y, curve undone"),
    "NLBP onto the box, x in 0 to 1": (box_rounds, "y, curve undone"),
}


def sensed(y: Array, bits: int | None, *, clipped: bool) -> tuple[Array, Array, Array]:
    """What a sensor returns for `y`, clipped to [0, 1] and rounded to `bits`, and the box of all it may stand for."""
    seen = jnp.clip(y, 0, 1) if clipped else y
    lower = upper = seen
    if bits is not None:
        step = 1 / (2**bits - 1)
        seen = step * jnp.round(seen / step)
        seen = jnp.clip(seen, 0, 1) if clipped else seen  # 1 up to rounding, where a sensor returns its largest value
        lower, upper = quantisation_box(seen, step)
    if clipped:
        low, high = clipping_box(seen, 0.0, 1.0)
        lower, upper = jnp.minimum(lower, low), jnp.maximum(upper, high)
    return seen, lower, upper


def quantisation(bench: Bench) -> Findings:
    """A blur of the same size, the tone curve, and an observation that is rounded, clipped or both."""
    settings = {"8 bits": (8, False), "4 bits": (4, False), "3 bits": (3, False)}
    settings |= {"clipped": (None, True), "4 bits, clipped": (4, True)}
    if bench.quick:
        settings = {name: settings[name] for name in ("4 bits", "4 bits, clipped")}
    groups = _groups(bench, 32 if bench.quick else 96)
    rows, measures, pictures = [], {}, {}
    for setting, (bits, clipped) in settings.items():
        curve = functools.partial(exposed, dtype=bench.dtype, exposure=1.3 if clipped else 1.0)
        cameras = [blurred(image_shape(x), 0.8, 1, curve, bench.dtype) for x in groups]
        clean = [apply(observe, camera, x) for camera, x in zip(cameras, groups, strict=True)]
        data = [sensed(y, bits, clipped=clipped) for y in clean]
        found, estimates, levels = compare(BOXED, list(zip(cameras, groups, data, strict=True)), outside)
        rows += [{"observation": setting} | row for row in found]
        if clipped:
            saturated = np.mean([float(jnp.mean(seen >= 1)) for seen, _, _ in data])
            measures[f"{setting}, share of pixels at the limit"] = float(saturated)
        for name in BOXED:
            pictures.setdefault(name, []).append(shown(estimates[name][0])[0])
            pictures.setdefault(f"PSNR of {name}", []).append(levels[name][0])
        pictures.setdefault("photograph", []).append(shown(groups[0])[0])
        pictures.setdefault("observation", []).append(shown(data[0][0])[0])
    for row in rows:
        row["outside the box, max"] = row.pop("consistency, max")
    return Findings(rows, measures, {name: np.stack(stack) for name, stack in pictures.items()})


def noise(bench: Bench) -> Findings:
    """What 1 per cent of noise becomes in `pinv`, against the condition number, and a box of two deviations instead."""
    std = 0.01
    x = photographs(GREY[:2], 32, bench.dtype) if bench.quick else photographs(GREY, 96, bench.dtype)
    curve = functools.partial(Gamma, dtype=bench.dtype)
    cameras = {
        "blur to 1.2 px, half size": blurred(image_shape(x), 1.2, 2, curve, bench.dtype),
        "blur to 0.8 px": blurred(image_shape(x), 0.8, 1, curve, bench.dtype),
        "blur to 1.2 px": blurred(image_shape(x), 1.2, 1, curve, bench.dtype),
    }
    if not bench.quick:
        cameras["fish-eye"] = distorted(image_shape(x), 60, 0.2, bench.dtype)
    rows, pictures = [], {}
    for name, camera in cameras.items():
        y = apply(observe, camera, x)
        noisy = y + std * jax.random.normal(bench.key, y.shape, y.dtype)
        smooth = apply(guess, camera, noisy)
        estimates = {
            "pinv without noise": apply(pinv, camera, y),
            "pinv": apply(pinv, camera, noisy),
            "smooth guess": smooth,
            "NLBP of it": apply(projection, camera, smooth, noisy),
            "NLBP onto y ± 2 %": apply(box_projection, camera, smooth, noisy, noisy - 2 * std, noisy + 2 * std),
        }
        scores = {what: quality(x, estimate)["psnr"] for what, estimate in estimates.items()}
        grown = float(jnp.sqrt(jnp.mean((estimates["pinv"] - estimates["pinv without noise"]) ** 2)))
        cells = {"optics": name, "condition number": float(condition_number(camera)), "noise × ": grown / std}
        rows.append(cells | {f"PSNR dB, {what}": float(jnp.mean(score)) for what, score in scores.items()})
        estimates = {"photograph": x} | estimates
        for what, estimate in estimates.items():
            pictures.setdefault(what, []).append(shown(estimate)[0])
        for what, score in scores.items():
            pictures.setdefault(f"PSNR of {what}", []).append(float(score[0]))
    return Findings(rows, {}, {name: np.stack(stack) for name, stack in pictures.items()})


def _grid(arrays: Mapping[str, np.ndarray], titles: Sequence[str] | None = None) -> Any:
    """All images of a part, a row per method, with the PSNR above each."""
    rows = {name: array for name, array in arrays.items() if not name.startswith("PSNR of ")}
    first = [name for name in ("photograph", "observation") if name in rows]
    rows = {name: rows[name] for name in first} | rows
    captions = {name: [f"{level:.1f} dB" for level in arrays[f"PSNR of {name}"]] for name in rows if name not in first}
    labels = {name: name.replace(", ", ",\n").replace("back-projection", "projection") for name in rows}
    return plots.image_grid(
        {labels[name]: images for name, images in rows.items()},
        limits=(0.0, 1.0),
        titles=titles,
        captions={labels[name]: texts for name, texts in captions.items()},
    )


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """A grid of images for every part that was run."""
    drawn = {name: _grid(found[name].arrays) for name in ("blur", "fisheye") if name in found}
    for name, column in (("quantisation", "observation"), ("noise", "optics")):
        if name in found:
            titles = list(dict.fromkeys(row[column].replace(", ", ",\n") for row in found[name].rows))
            drawn[name] = _grid(found[name].arrays, titles)
    if "saturation" in found:
        arrays = found["saturation"].arrays
        rows = {name: arrays[name] for name in ("observation", "there and back", "100 x error")}
        drawn["saturation"] = plots.image_grid(
            rows,
            limits=(0.0, 1.0),
            titles=[f"slope {slope:g}" for slope in arrays["slopes"]],
            captions={"there and back": [f"error {error:.0e}" for error in arrays["errors"]]},
        )
    return drawn


LENS = Study(
    name="lens",
    summary="photographs through blur, fish-eye and sensor curves: exact pseudo-inverses, nothing trained",
    reference="Y. Ehrlich, A. Berman, A. Shocher, Pseudo-Invertible Neural Networks, 2026, arXiv:2602.06042",
    recipes={
        "blur": blur,
        "fisheye": fish_eye,
        "quantisation": quantisation,
        "noise": noise,
        "saturation": saturation,
    },
    figures=figures,
)
