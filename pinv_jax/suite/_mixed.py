"""The study `mixed-constraints`: attributes, colour histogram and coarse energies of an image, met at once.

Each of the three is an exact surjection of the image: the logits of a network, 8 quantiles per colour channel, the
energies of three bands of coarse waves. Alone each is met in one step; together they have no joint inverse, and are
projected onto in turn at every step of the sampler. `CyclicProjection` finishes: sweeps, then Gauss-Newton steps on all
of them. The residual that remains is reported.

Parts: `same`, all three from one held-out image, so that they can be met; `crossed`, each from another image, so that
they may contradict each other: the histogram of a warm image and the logits of a cold one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from .._problem import Problem
from ..diffusion import DDPM, DPS, project_after, sample
from ..maps import Affine, Joint, Natural, SurjectiveChain, prepare
from ..solvers import CyclicProjection, solve
from ._attributes import figures
from ._digits import each
from ._guided import all_samples, best_scale, draw, misses, nearest, of_unit, to_unit
from ._restore_logits import REFERENCE
from ._shapes import SIZE, attribute_judge, attribute_network, shape_data, shape_prior
from ._statistics import BandEnergies, Quantiles
from ._study import Bench, Findings, Study

NAMES = ("energies", "histogram", "attributes")
"""In the order of projection."""
TOLERANCE = 1e-4


def constraints(bench: Bench) -> dict[str, Any]:
    """The three surjections of images between -1 and 1; the logits in units of their deviation."""
    shape, network = (3, SIZE, SIZE), of_unit(attribute_network(bench))
    probe = jax.jit(jax.vmap(network))(2 * shape_data(256, bench.dtype, key=jax.random.key(7)).x - 1)
    scale = jnp.full((4,), 1 / jnp.std(probe), bench.dtype)
    unit = Affine(scale, jnp.zeros(4, bench.dtype))  # pyright: ignore[reportCallIssue]
    found = (
        of_unit(BandEnergies(shape, 3, bench.dtype)),
        of_unit(SurjectiveChain([Quantiles(shape, 8, bench.dtype)])),
        SurjectiveChain([network, unit]),
    )
    energies, *others = (prepare(f) for f in found)
    # Without energy there is no z(0); with the section of `BandEnergies`, which is constant too, nothing changes.
    return dict(zip(NAMES, (energies, *(prepare(Natural(f)) for f in others)), strict=True))


def _sampled(make: Any, num_steps: int, models: Any, item: Any, key: PRNGKeyArray) -> Array:
    return sample(models["prior"], DDPM(num_steps), key=key, guide=make(models, item))


def _nlbp(names: tuple[str, ...], models: Any, item: Any) -> Any:
    return project_after([models["constraints"][name] for name in names], [item[name] for name in names])


def _dps(models: Any, item: Any) -> DPS:
    joint = Joint([models["constraints"][name] for name in NAMES])
    return DPS(joint, joint.join([item[name] for name in NAMES]), models["scale"])


def _finished(method: Any, models: Any, item: Any, key: PRNGKeyArray) -> Array:
    joint = Joint([models["constraints"][name] for name in NAMES])
    problem = Problem(joint, joint.join([item[name] for name in NAMES]))
    return solve(
        problem, CyclicProjection(5, num_kicks=2, atol=TOLERANCE), method(models, item, key), max_steps=40
    ).value


def _mean(models: Any, item: Any, key: PRNGKeyArray) -> Array:
    return models["mean"]


@functools.cache
def methods(num_steps: int) -> dict[str, tuple[Any, int, bool]]:
    """By name: `(models, data by name, key) -> x`, evaluations of the denoiser, whether its derivative is needed."""
    by = lambda make: functools.partial(_sampled, make, num_steps)
    every = by(functools.partial(_nlbp, NAMES))
    return {
        "prior alone": (by(lambda models, item: None), num_steps, False),
        "mean image, then joint": (functools.partial(_finished, _mean), 0, False),
        "DPS": (by(_dps), num_steps, True),
        **{f"NLBP, {name} alone": (by(functools.partial(_nlbp, (name,))), num_steps, False) for name in NAMES},
        "NLBP, all in turn": (every, num_steps, False),
        "NLBP, all in turn, then joint": (functools.partial(_finished, every), num_steps, False),
    }


def mixed(bench: Bench, crossed: int) -> Findings:
    """Every method; the three data of an item come from images `crossed` places apart."""
    num, num_steps, num_seeds = (4, 8, 2) if bench.quick else (32, 50, 3)
    images = shape_data(num, bench.dtype, key=bench.key)
    maps, judge = constraints(bench), attribute_judge(bench)
    reference = 2 * shape_data(256 if bench.quick else 2048, bench.dtype, key=jax.random.key(2**31 - 1)).x - 1
    x = 2 * images.x - 1
    models = {"prior": shape_prior(bench), "constraints": maps, "mean": jnp.mean(reference, axis=0)}
    items = {
        name: jax.jit(jax.vmap(f))(jnp.roll(x, crossed * place, axis=0)) for place, (name, f) in enumerate(maps.items())
    }
    wanted = np.asarray(jnp.roll(images.y, crossed * NAMES.index("attributes"), axis=0))
    ruler = nearest(x, reference)

    def measured(x: Array) -> tuple[dict[str, np.ndarray], np.ndarray]:
        right = (np.asarray(each(judge, to_unit(all_samples(x)))) > 0).reshape(*x.shape[:2], -1) == wanted[None]
        return {name: np.asarray(misses(f, x, items[name])) for name, f in maps.items()}, right

    models["scale"] = jnp.asarray(0.1, bench.dtype)
    if not bench.quick:
        score = lambda found: -np.median(sum(measured(found)[0].values()))
        models["scale"] = best_scale(methods(num_steps)["DPS"][0], models, items, score, key=bench.key)
    rows, arrays = [], {"energies of": to_unit(x[:12])}
    arrays["histogram of"], arrays["attributes of"] = (to_unit(jnp.roll(x, k * crossed, axis=0)[:12]) for k in (1, 2))
    for name, (method, cost, derivative) in methods(num_steps).items():
        found = draw(method, models, items, key=bench.key, num_seeds=num_seeds if cost else 1)
        missed, right = measured(found.x)
        worst = np.max(np.stack(list(missed.values())), axis=0)
        rows.append(
            {
                "method": name,
                **{key: float(np.median(value)) for key, value in missed.items()},
                "largest of the three": float(np.median(worst)),
                "all below 1e-3 %": 100 * float(np.mean(worst < 1e-3)),
                "judged %": 100 * float(np.mean(right)),
                "nearest": nearest(all_samples(found.x), reference) / ruler,
                "evaluations": cost,
                "derivatives": cost if derivative else 0,
                "CPU ms": 1e3 * found.seconds,
            }
        )
        arrays[name] = to_unit(found.x[0, :12])
    measures = {"images": num, "seeds": num_seeds, "scale of DPS": float(models["scale"])}
    return Findings(rows, measures, {k: np.moveaxis(np.asarray(v), 1, -1) for k, v in arrays.items()})


MIXED_CONSTRAINTS = Study(
    name="mixed-constraints",
    summary="attributes, colour histogram and coarse energies of an image met at once, and each alone",
    reference=REFERENCE,
    recipes={"same": functools.partial(mixed, crossed=0), "crossed": functools.partial(mixed, crossed=1)},
    figures=figures,
)
