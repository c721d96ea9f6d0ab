"""Heat-1D: the initial temperature from a blurred, nonlinear, noisy view of the diffused one (arXiv:2605.13068).

`x` on 64 interior points of (0, 1), a sine series scaled to [0, 1]; `y` after diffusion (0.18 for time 0.08), blur and
`z + 0.18 z^3 + 0.08 sin(3 z)`; noise 0.01 on the observation; outputs z-scored. The Jacobian has about five singular
values above the noise, of 64. Recipes:

- `published`: the surrogate, networks, training and solvers of the paper. A single layer with a leaky ReLU cannot
  represent z-scored outputs, so the surrogate misses the physics by twice the tolerance; that bounds every solver that
  runs on it.
- `default`: the physics itself as the forward map, an inverse trained on fresh draws; beside it a deliberately poor
  inverse (the published selection, on the true physics) and a tight noise-free problem in the five best observed
  directions.
"""

import dataclasses
import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..data import PairedData, minmax_sine_series
from ..diagnostics import rjcp
from ..learn import (
    THREE_STAGE,
    InversePair,
    Stage,
    Term,
    fit,
    jcp,
    reconstruction,
    three_stage,
)
from ..maps import MLP, AbstractMap, Chain, Linear, LinearSkipMLP, kaiming_uniform
from ..pde import observed_heat_1d, sine_basis
from ..solvers import (
    DIPG,
    LBFGS,
    Box,
    GaussNewton,
    GradientDescent,
    LevenbergMarquardt,
    PublishedArmijo,
    Safeguarded,
)
from ._base import Dataset, InverseProblem, Recipe, Row, assemble, mean_estimate, observed_row, ridge_estimate
from ._inverse import (
    cosine_adam,
    default_measures,
    default_metric,
    default_trust,
    the_inverse,
    train_inverse,
    with_parameters,
)

TOLERANCE = 0.30
DISCREPANCY = 1.1
SIZE = 64
BOX = Box(0.0, 1.0)


def _torch_normal(state: np.random.RandomState, *shape: int) -> np.ndarray:
    """What `torch.randn(*shape)` draws on a CPU: 24 bits of each Mersenne twister word, Box-Muller in blocks of 16."""
    words = state.randint(0, 2**32, size=math.prod(shape), dtype=np.uint32) & 0xFFFFFF
    uniform = (words.astype(np.float32) / np.float32(2**24)).reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - uniform[:, 0]))
    angle = np.float32(2 * np.pi) * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(shape)


def published_unknowns() -> tuple[np.ndarray, np.ndarray]:
    """The 4800 unknowns of the published run (seed 7), training, validation, test, and its noise, both `(4800, 64)`."""
    state, num = np.random.RandomState(7), 4000 + 500 + 300
    coefficients, first = _torch_normal(state, num, 10), _torch_normal(state, num)
    coefficients[:, 0] += np.float32(0.25) * first
    coefficients[:, 1:] /= np.arange(2, 11, dtype=np.float32)
    x = coefficients @ np.asarray(sine_basis(SIZE, 10, np.float32)).T
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    return (x - low) / (high - low + np.float32(1e-8)), np.float32(0.01) * _torch_normal(state, num, SIZE)


def dataset(*, seed: int, num_test: int, dtype: DTypeLike, quick: bool) -> Dataset:
    """The published data, number for number: 4000 training and 500 validation pairs, up to 300 noisy observations.

    They do not depend on the seed: a mean over 300 test items varies more between draws of the test set (standard
    deviation 0.0024) than between trainings, which is what the seed is for.

    Raises:
        ValueError: more test observations than were published.
    """
    del seed
    if num_test > 300:
        raise ValueError(f"heat1d has 300 published test observations, got num_test={num_test}; ask for at most 300.")
    physics, sample = observed_heat_1d(SIZE, dtype=dtype), minmax_sine_series(SIZE, dtype=dtype)
    unknowns, noise = (jnp.asarray(array, dtype) for array in published_unknowns())
    y = jax.jit(jax.vmap(physics))(unknowns)
    begins, sizes = (0, 4000, 4500), ((512, 128, num_test) if quick else (4000, 500, num_test))
    parts = [slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True)]
    clean = [PairedData(unknowns[part], y[part]) for part in parts]
    noisy = [PairedData(unknowns[part], y[part] + noise[part]) for part in parts]
    return assemble(physics, sample, 0.01, clean, noisy)


# The published recipe -------------------------------------------------------------------------------------------------


def published_constants(*, quick: bool) -> Any:
    constants = THREE_STAGE["heat1d"]
    return dataclasses.replace(constants, epochs=(8, 6, 6)) if quick else constants


def _published_inverse(dtype: DTypeLike, key: PRNGKeyArray) -> MLP:
    return MLP((SIZE, 2 * SIZE, SIZE), dtype=dtype, key=key)


def train_published(
    dataset: Dataset, *, key: PRNGKeyArray, folder: Any, progress: Any, quick: bool
) -> dict[str, InversePair]:
    """Surrogate, inverse, and the third stage with and without the penalty: models "plus" and "minus"."""
    dtype = dataset.train.x.dtype
    forward_key, inverse_key, fit_key = jax.random.split(key, 3)
    surrogate = MLP((SIZE, SIZE), output_activation="leaky_relu", dtype=dtype, key=forward_key)
    pair = InversePair(surrogate, _published_inverse(dtype, inverse_key))
    train, val = dataset.train, dataset.val
    stages = three_stage(published_constants(quick=quick), train.num_examples, selection="published")
    third = stages.pop("jcp")
    common = {"key": fit_key, "validation": (val.x, val.y), "progress": progress}
    pair, _ = fit(pair, stages, (train.x, train.y), checkpoint=folder / "common", **common)
    models = {}
    for name, stage in (("plus", third), ("minus", third.without("jcp"))):
        models[name], _ = fit(pair, {f"jcp-{name}": stage}, (train.x, train.y), checkpoint=folder / name, **common)
    return models


def published_rows(dataset: Dataset, models: dict[str, InversePair]) -> list[Row]:
    """Every solver of the paper on the same surrogate, with its line search, relaxation, start and stop."""
    rules: dict[str, Any] = {"atol": TOLERANCE, "rtol": 0.0, "search": PublishedArmijo()}
    plus, minus = models["plus"], models["minus"]
    methods = {
        ("dipg", "with JCP"): (plus, DIPG(plus.inverse, proposal="paper", relaxation=0.4, **rules)),
        ("dipg", "without JCP"): (minus, DIPG(minus.inverse, proposal="paper", relaxation=0.4, **rules)),
        ("gd", ""): (plus, GradientDescent(0.4, **rules)),
        ("gn", ""): (plus, GaussNewton(relaxation=0.4, active_set=False, **rules)),
        ("lm", "damping 0.01"): (plus, LevenbergMarquardt(damping=1e-2, relaxation=0.4, active_set=False, **rules)),
        ("lbfgs", ""): (plus, LBFGS(atol=TOLERANCE)),
    }
    return [
        _row(dataset, "published", solver, note, method, forward=pair.forward, max_steps=120, surrogate=True)
        for (solver, note), (pair, method) in methods.items()
    ]


def published_measures(dataset: Dataset, models: dict[str, InversePair], *, key: PRNGKeyArray) -> dict[str, Any]:
    """RJCP with identity probes, and how far the surrogate is from the physics."""
    xs, ys = dataset.val.x, dataset.val.y
    found = {f"RJCP {name}": float(rjcp(pair.forward, pair.inverse, xs[:64], key=key)) for name, pair in models.items()}
    misfit = jax.vmap(models["plus"].forward)(xs) - ys
    return found | {"surrogate validation MSE": float(jnp.mean(misfit**2))}


# The default recipe ---------------------------------------------------------------------------------------------------


def train_poor(dataset: Dataset, *, key: PRNGKeyArray, folder: Any, progress: Any, quick: bool) -> InversePair:
    """A poor inverse of the true physics: the published stages, penalty towards the identity, selection by RJCP."""
    inverse_key, fit_key = jax.random.split(key)
    pair = InversePair(dataset.physics, _published_inverse(dataset.train.x.dtype, inverse_key))
    stages = three_stage(published_constants(quick=quick), dataset.train.num_examples, selection="published")
    del stages["surrogate"]
    stages["jcp"] = stages["jcp"].without("composition", "bias_tie")  # the physics has no layer to compare with
    validation = (dataset.val.x, dataset.val.y)
    data = (dataset.train.x, dataset.train.y)
    pair, _ = fit(pair, stages, data, key=fit_key, validation=validation, checkpoint=folder, progress=progress)
    return pair


class Latent(AbstractMap):
    """`z -> x = mean + B z`, in the directions that the observation determines best.

    `B = C^(1/2) V_r` with `V_r` the leading right singular vectors of `J C^(1/2)` at the mean, so that `z` is white
    under the prior, to second order. Principal components of `x` itself do not do: not all of them are observed.
    """

    mean: Float[Array, " d"]
    basis: Float[Array, "d r"]

    def __init__(self, dataset: Dataset, rank: int = 5):
        metric = default_metric(dataset)
        self.mean = jnp.mean(dataset.train.x, axis=0)
        jac = jax.jacfwd(dataset.physics)(self.mean)
        with jax.default_matmul_precision("highest"):
            _, _, vt = jnp.linalg.svd(jac @ metric.covariance_sqrt, full_matrices=False)
            self.basis = metric.covariance_sqrt @ vt[:rank].T

    def __call__(self, x: Float[Array, " r"]) -> Float[Array, " d"]:
        """The unknown with latent coordinates `x`."""
        with jax.default_matmul_precision("highest"):
            return self.mean + self.basis @ x

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the latent coordinates."""
        return jax.ShapeDtypeStruct(self.basis.shape[1:], self.basis.dtype)


def train_latent(dataset: Dataset, *, key: PRNGKeyArray, folder: Any, progress: Any, quick: bool) -> InversePair:
    """A near-exact inverse of the physics in five latent coordinates, without noise."""
    linear_key, network_key, fit_key = jax.random.split(key, 3)
    latent = Latent(dataset)
    dtype, rank = latent.mean.dtype, latent.basis.shape[1]
    forward = Chain([latent, dataset.physics])
    zero = jnp.zeros(rank, dtype)
    # The pseudo-inverse at the mean: it annihilates what the latent coordinates cannot produce.
    pseudo = jnp.linalg.pinv(jax.jacfwd(forward)(zero))
    linear = Linear(SIZE, rank, dtype=dtype, key=linear_key)
    linear = with_parameters(linear, weight=pseudo, bias=-(pseudo @ forward(zero)))
    sizes = (rank, 64, 64, rank)
    network = LinearSkipMLP(sizes, activation="gelu", init=kaiming_uniform(5**0.5), dtype=dtype, key=network_key)
    network = _identity_skip(network, rank, dtype)
    num_steps = 200 if quick else 3000
    terms = {
        "reconstruction": Term(functools.partial(reconstruction, source="data")),
        "jcp": Term(functools.partial(jcp, num_probes=1, probe="normal"), 0.1),
    }
    stage = Stage(terms, the_inverse, num_steps, 256, cosine_adam(3e-3, num_steps))

    def draw(key: PRNGKeyArray) -> tuple[Array, Array]:
        z = 1.2 * jax.random.normal(key, (rank,), dtype)
        return z, forward(z)

    pair = InversePair(forward, Chain([linear, network]))
    pair, _ = fit(pair, {"inverse": stage}, draw, key=fit_key, checkpoint=folder, progress=progress)
    return pair


def _identity_skip(network: LinearSkipMLP, size: int, dtype: DTypeLike) -> LinearSkipMLP:
    skip = with_parameters(network.skip, weight=jnp.eye(size, dtype=dtype), bias=jnp.zeros(size, dtype))
    return eqx.tree_at(lambda net: net.skip, network, skip)


def train_default(
    dataset: Dataset, *, key: PRNGKeyArray, folder: Any, progress: Any, quick: bool
) -> dict[str, InversePair]:
    """The models "good", "poor" and "latent"."""
    keys = jax.random.split(key, 3)
    recipes = {"good": train_inverse, "poor": train_poor, "latent": train_latent}
    return {
        name: train(dataset, key=k, folder=folder / name, progress=progress, quick=quick)
        for (name, train), k in zip(recipes.items(), keys, strict=True)
    }


def default_rows(dataset: Dataset, models: dict[str, InversePair]) -> list[Row]:
    """Baselines, every solver on the true physics, stops at the noise level, the poor inverse, the tight problem."""
    good, poor, trust = models["good"].inverse, models["poor"].inverse, default_trust(dataset)
    row = functools.partial(_row, dataset, "default", forward=dataset.physics)
    rms: dict[str, Any] = {"atol": TOLERANCE}
    # A full step that promises less than one degree of freedom of chi-square is not worth taking.
    noise: dict[str, Any] = {"discrepancy": DISCREPANCY, "rtol": 2 / SIZE}
    # The discrepancy principle proper: the noise level of each observation, as far as its root mean square goes.
    own = jnp.broadcast_to(dataset.test_noise_rms[:, None], dataset.test.y.shape)
    stop, level, morozov = "res <= 0.30", "res <= 1.1 sigma", "res <= 1.1 |noise|"
    rows = [
        row("mean", "", mean_estimate(dataset)),
        row("ridge", "", ridge_estimate(dataset, key=jax.random.key(1))),
        row("one-shot", "g(data)", good),
        row("dipg", stop, DIPG(good, **rms, trust=trust)),
        row("dipg", f"{stop}, from 0", DIPG(good, **rms, jump_first=False)),
        row("safeguarded", stop, Safeguarded(good, trust=trust, **rms)),
        row("lm", stop, LevenbergMarquardt(**rms)),
        row("gn", stop, GaussNewton(**rms)),
        row("lbfgs", stop, LBFGS(**rms)),
        row("gd", stop, GradientDescent(**rms), max_steps=300),
        *(
            row(solver, note, method, noise_std=std)
            for note, std in ((morozov, own), (level, dataset.noise_std))
            for solver, method in (
                ("dipg", DIPG(good, **noise)),
                ("safeguarded", Safeguarded(good, trust=trust, **noise)),
                ("lm", LevenbergMarquardt(discrepancy=DISCREPANCY)),
            )
        ),
        row("one-shot", "poor g(data)", poor),
        row("dipg", "poor g", DIPG(poor, **rms)),
        row("safeguarded", "poor g", Safeguarded(poor, trust=trust, **rms)),
        row("lm", "damping 0.01", LevenbergMarquardt(damping=1e-2, **rms)),
    ]
    return rows + _tight_rows(dataset, models["latent"])


def _tight_rows(dataset: Dataset, pair: InversePair) -> list[Row]:
    forward = pair.forward.fn
    latent = forward.layers[0]
    num = dataset.test.num_examples
    z = jax.random.normal(jax.random.key(777), (num, *latent.in_structure().shape), latent.mean.dtype)
    rules: dict[str, Any] = {"atol": 1e-4}
    methods = {
        ("dipg", "5 latents to 1e-4, defect"): DIPG(pair.inverse, **rules),
        ("dipg", "5 latents to 1e-4, paper"): DIPG(pair.inverse, proposal="paper", **rules),
        ("gn", "5 latents to 1e-4"): GaussNewton(**rules),
    }
    return [
        Row(
            "default",
            solver,
            note,
            forward=forward,
            method=method,
            data=jax.vmap(forward)(z),
            truth=jax.vmap(latent)(z),
            x0=jnp.zeros_like(z[0]),
            tolerance=1e-4,
            physics=dataset.physics,
            decode=latent,
        )
        for (solver, note), method in methods.items()
    ]


def measures(dataset: Dataset, models: dict[str, InversePair], *, key: PRNGKeyArray) -> dict[str, Any]:
    """What `default_measures` says of the good and the poor inverse, the identity RJCP of the latent one, and a limit.

    The limit: a fixed noise level is exceeded by the noise of some observations, so that not even the truth meets them.
    """
    noise = (jax.vmap(dataset.physics)(dataset.test.x) - dataset.test.y) / dataset.noise_std[None]
    met = jnp.sqrt(jnp.mean(noise**2, axis=1)) <= DISCREPANCY
    latent = models["latent"]
    z = jax.random.normal(key, (64, latent.forward.fn.layers[0].basis.shape[1]), dataset.train.x.dtype)
    found = default_measures(dataset, {name: models[name] for name in ("good", "poor")}, key=key)
    return found | {
        "observations within 1.1 sigma at the true x": float(jnp.mean(met)),
        "RJCP latent": {"identity": float(rjcp(latent.forward, latent.inverse, z, key=key))},
    }


def _row(dataset: Dataset, recipe: str, solver: str, note: str, method: Any, **options: Any) -> Row:
    return observed_row(dataset, recipe, solver, note, method, tolerance=TOLERANCE, project=BOX, **options)


HEAT1D = InverseProblem(
    name="heat1d",
    summary="initial temperature on 64 points from a blurred, nonlinear, noisy view of the diffused one",
    reference="A. L. Kachhadiya, Local Inverse Geometry Can Be Amortized, 2026, arXiv:2605.13068",
    tolerance=TOLERANCE,
    num_test=300,
    dataset=dataset,
    recipes={
        "published": Recipe(train_published, published_rows, published_measures),
        "default": Recipe(train_default, default_rows, measures),
    },
    figure_recipe="default",
)
