"""A short video through the camera of `restore-blur`, with a prior of single pictures: the study `restore-video`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .. import plots
from ..diffusion import DDIM, Prior, Start, project_after_interval, sample
from ._lens_camera import quality, shown
from ._priors import trained_prior
from ._psf_photographs import TEST, grey
from ._restoration import (
    DPS_NAME,
    ETA,
    FROM,
    LINEAR_NAME,
    NUM_STEPS,
    OURS,
    REFERENCE,
    Degradation,
    Observation,
    best_scale,
    by_gradient,
    guided,
    ignoring,
    misses,
    observe,
    onto_bounds,
    run_method,
    to_unit,
)
from ._restore_optics import RESTORE_BLUR
from ._study import Bench, Findings, Study

NAMES = (
    LINEAR_NAME,
    DPS_NAME,
    f"{OURS}, own noise",
    f"{OURS}, same noise",
    f"{OURS}, from the frame before",
)


def clips(num_clips: int, num_frames: int, side: int, dtype: Any) -> Float[Array, "clips frames 1 s s"]:
    """Test photographs, over which the camera pans: a pixel per frame to the right and half a one down."""
    photographs = np.asarray(2 * grey(TEST, 4 * side, dtype) - 1)
    rng = np.random.default_rng(0)
    found = []
    for index in range(num_clips):
        top, left = rng.integers(0, 3 * side - num_frames, 2)
        frames = [(top + k // 2, left + k) for k in range(num_frames)]
        found.append([photographs[index % len(photographs), :, i : i + side, j : j + side] for i, j in frames])
    return jnp.asarray(np.asarray(found), dtype)


def each_frame(
    method: Any, prior: Prior, task: Degradation, seen: Observation, key: PRNGKeyArray, *, same: bool
) -> Array:
    """A method for single pictures on every frame, with the same noise or with noise of its own."""
    count = len(seen.y)
    keys = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(key)[None], (count, 1)))
    keys = keys if same else jax.random.split(key, count)
    return jax.vmap(lambda seen, key: method(prior, task, seen, key))(seen, keys)


def from_before(num_steps: int, prior: Prior, task: Degradation, seen: Observation, key: PRNGKeyArray) -> Array:
    """NLBP from noise for the first frame, and from the frame before, noised to `FROM`, for the others."""
    first, rest = jax.tree.map(lambda a: a[0], seen), jax.tree.map(lambda a: a[1:], seen)
    sampler = DDIM(num_steps, ETA)
    guide = functools.partial(project_after_interval, task.f)

    def step(x: Array, seen: Observation) -> tuple[Array, Array]:
        x = sample(prior, sampler, key=key, guide=guide(seen.lower, seen.upper), start=Start(x, FROM))
        return x, x

    x = sample(prior, sampler, key=key, guide=guide(first.lower, first.upper))
    _, others = jax.lax.scan(step, x, rest)
    return jnp.concatenate([x[None], others])


def video(bench: Bench) -> Findings:
    """PSNR and consistency of every frame, and how much the error flickers."""
    folder = bench.models.parent.parent / "priors"
    options = {"quick": bench.quick, "seed": bench.seed, "dtype": bench.dtype, "progress": bench.progress}
    trained = trained_prior("photographs32", folder, **options)
    task = RESTORE_BLUR.recipes["blur"].keywords["task"].build(bench, trained)  # pyright: ignore
    num_clips, num_frames, num_seeds = (2, 3, 1) if bench.quick else (12, 6, 3)
    num_steps = 3 if bench.quick else NUM_STEPS
    x = clips(num_clips, num_frames, 32, bench.dtype)
    sense_key, choice_key, sample_key = jax.random.split(bench.key, 3)
    frames = x.reshape(-1, *x.shape[2:])
    flat = observe(task, frames, jax.random.split(sense_key, len(frames)))
    seen = jax.tree.map(lambda a: a.reshape(num_clips, num_frames, *a.shape[1:]), flat)
    scale = 1.0 if bench.quick else best_scale(trained, task, num_steps, 6, choice_key)
    gradient = guided(functools.partial(by_gradient, scale=scale), num_steps)
    alone = [guided(ignoring, num_steps), gradient, guided(onto_bounds, num_steps)]
    methods = [functools.partial(each_frame, method, same=False) for method in alone]
    methods += [functools.partial(each_frame, alone[-1], same=True), functools.partial(from_before, num_steps)]
    later = int(np.sum(trained.prior.schedule.times(num_steps) <= FROM)) - 1
    costs = dict.fromkeys(NAMES, float(num_steps))
    costs[NAMES[-1]] = float(num_steps + (num_frames - 1) * later) / num_frames
    rows, pictures = [], {"frame": shown(to_unit(x[0]))}
    for name, method in zip(NAMES, methods, strict=True):
        found, seconds = run_method(method, trained.prior, task, seen, list(jax.random.split(sample_key, num_seeds)))
        flicker, scores, missed = [], [], []
        for estimate in found:
            error = to_unit(estimate) - to_unit(x)
            flicker.append(jnp.sqrt(jnp.mean((error[:, 1:] - error[:, :-1]) ** 2, axis=(1, 2, 3, 4))))
            scores.append(quality(to_unit(frames), to_unit(estimate.reshape(frames.shape))))
            missed.append(misses(task, flat, estimate.reshape(frames.shape)))
        rows.append(
            {
                "method": name,
                "PSNR dB": float(np.median([score["psnr"] for score in scores])),
                "SSIM": float(np.median([score["ssim"] for score in scores])),
                "consistency": float(np.median(missed)),
                "change of the error between frames": float(np.median(flicker)),
                "evaluations": costs[name],
                "ms/frame": 1e3 * seconds / len(frames),
            }
        )
        pictures[name] = shown(to_unit(found[0][0]))
    measures = {"clips": num_clips, "frames": num_frames, "seeds": num_seeds, "steps": num_steps, "scale of DPS": scale}
    return Findings(rows, measures, pictures)


def _figures(found: Any) -> dict[str, Any]:
    rows = {name.replace(", ", ",\n"): array for name, array in found["video"].arrays.items()}
    return {"video": plots.image_grid(rows, limits=(0.0, 1.0))}


RESTORE_VIDEO = Study(
    name="restore-video",
    summary="restoration of a short video with a diffusion prior of pictures: what flickers, and what helps",
    reference=REFERENCE,
    recipes={"video": video},
    figures=_figures,
)
