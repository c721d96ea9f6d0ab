"""Milliseconds per solve on Heat-1D at equal residual: D-IPG, our own baselines, optimistix, SciPy, in turn."""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import scipy.optimize

import pinv_jax as pj
from pinv_jax import _store, learn, maps, solvers, suite
from pinv_jax.suite import _heat1d, _inverse

from ._timing import environment, race

GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "deceptron_heat1d.npz"
TOLERANCE = 0.30
BOX = solvers.Box(0.0, 1.0)


def published_problem(num: int) -> tuple[pj.Problem, Any, Callable[..., Any]]:
    """The published surrogate, its 60 stored observations repeated to `num`, the starts, and the published inverse."""
    golden = np.load(GOLDEN)

    def load(name: str) -> Any:
        return jnp.asarray(golden[f"plus/{name}"], jnp.float32)

    def leaky(z: Any) -> Any:
        return jnp.where(z >= 0, z, 0.1 * z)

    w, b = load("forward_map.linear.weight"), load("forward_map.linear.bias")
    v0, c0 = load("reverse_map.network.0.weight"), load("reverse_map.network.0.bias")
    v1, c1 = load("reverse_map.network.2.weight"), load("reverse_map.network.2.bias")
    rows = np.resize(np.arange(60), num)
    problem = pj.Problem(lambda x: leaky(w @ x + b), jnp.asarray(golden["y_test_norm"][rows]), BOX)
    return problem, jnp.asarray(golden["x0"][rows]), lambda y: v1 @ leaky(v0 @ y + c0) + c1


def fit_surrogate(dataset: suite.Dataset, key: Any) -> Any:
    """A linear-skip surrogate of the physics, trained on fresh draws for a few seconds."""
    size = dataset.noise_std.shape[0]

    def jittered(x: Any, key: Any) -> Any:
        # Solvers leave the prior: half of the examples do, too.
        jitter_key, which = jax.random.split(key)
        return x + jnp.where(jax.random.bernoulli(which), 0.2, 0.0) * jax.random.normal(jitter_key, x.shape)

    net = maps.LinearSkipMLP((size, 128, size), activation="gelu", dtype=jnp.float32, key=key)
    # The linear part starts as the regression of y on x; random weights would survive where no datum points.
    x = jax.vmap(jittered)(dataset.train.x, jax.random.split(key, dataset.train.num_examples))
    y = jax.vmap(dataset.physics)(x)
    affine, *_ = jnp.linalg.lstsq(jnp.concatenate([x, jnp.ones((x.shape[0], 1))], axis=1), y)
    net = eqx.tree_at(lambda n: (n.skip.weight, n.skip.bias), net, (affine[:-1].T, affine[-1]))
    pair = learn.InversePair(net, net)
    terms = {"forward_fit": learn.Term(learn.forward_fit)}
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, 2000))
    stage = learn.Stage(terms, lambda pair: pair.forward, 2000, 256, optimiser)

    def draw(key: Any) -> Any:
        x_key, jitter_key = jax.random.split(key)
        x = jittered(dataset.sample(x_key), jitter_key)
        return x, dataset.physics(x)

    pair, _ = learn.fit(pair, {"surrogate": stage}, draw, key=key)
    return pair.forward.fn


class StopsAtResidual(optx.LevenbergMarquardt):
    """optimistix's Levenberg-Marquardt, stopped like ours, once the root mean square of the residual is small."""

    tolerance: float = TOLERANCE

    def terminate(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> Any:
        """Its own rule, or the residual."""
        done, result = super().terminate(fn, y, args, options, state, tags)
        residual = state.f_info.residual
        met = ~state.first_step & (jnp.sqrt(jnp.mean(residual**2)) <= self.tolerance)
        return done | met, result


class StopsTight(StopsAtResidual):
    """The same at 1e-4."""

    tolerance: float = 1e-4


def scipy_rows(dataset: suite.Dataset, num: int, tolerance: float) -> Callable[[], Any]:
    """`scipy.optimize.least_squares`, one observation after the other, with jitted residual and Jacobian."""
    forward = jax.jit(lambda x: dataset.physics(x))  # equinox modules with arrays do not hash
    jacobian = jax.jit(jax.jacfwd(lambda x: dataset.physics(x)))
    data = np.asarray(dataset.test.y[:num])

    def solve(y: np.ndarray) -> np.ndarray:
        def stop(intermediate_result: Any) -> None:
            if np.sqrt(np.mean(intermediate_result.fun**2)) <= tolerance:
                raise StopIteration

        return scipy.optimize.least_squares(
            lambda x: np.asarray(forward(x.astype(np.float32)), np.float64) - y,
            np.full(64, 0.5),
            jac=lambda x: np.asarray(jacobian(x.astype(np.float32)), np.float64),
            bounds=(0.0, 1.0),
            callback=stop,
        ).x

    def call() -> np.ndarray:
        return np.stack([solve(y) for y in data])

    return call


def _result(value: Any, problem: pj.Problem) -> tuple[Any, float]:
    x = value.value if isinstance(value, pj.Solution) else jnp.asarray(value, jnp.float32)
    residual = jax.vmap(problem.forward)(x) - problem.data[: x.shape[0]]
    rms = jnp.sqrt(jnp.mean(residual**2, axis=1))
    return x, float(jnp.mean(rms))


def compiled(problem: pj.Problem, method: Any, x0: Any, max_steps: int) -> Callable[[], Any]:
    """The whole batch as one compiled program, called with the data and the starts."""
    program = jax.jit(
        lambda data, x0: pj.solve_batch(
            pj.Problem(problem.forward, data, problem.project), method, x0, max_steps=max_steps
        )
    )
    return functools.partial(program, problem.data, x0)


def contest(title: str, problem: pj.Problem, methods: dict[str, Any], x0: Any, rounds: int, extra: Any) -> list[Any]:
    """Races methods on one problem; the first is the reference of the ratios."""
    num = problem.data.shape[0]
    free = pj.Problem(problem.forward, problem.data)  # optimistix knows no projection
    calls: dict[str, Callable[[], Any]] = {}
    for name, (method, max_steps) in methods.items():
        where = problem if isinstance(method, solvers.AbstractSolver) else free
        calls[name] = compiled(where, method, x0, max_steps)
    sizes = dict.fromkeys(calls, num) | {name: size for name, (_, size) in extra.items()}
    found = race(calls | {name: call for name, (call, _) in extra.items()}, rounds)
    names = list(found)
    reference = found[names[0]]["seconds"] / sizes[names[0]]
    rows = []
    for name, row in found.items():
        value, each = row["value"], row["seconds"] / sizes[name]
        _, residual = _result(value, problem)
        solution = value if isinstance(value, pj.Solution) else None
        rows.append(
            {
                "contest": title,
                "method": name,
                "n": sizes[name],
                "ms_per_solve": 1e3 * each,
                "quartiles_ms": [1e3 * row["low"] / sizes[name], 1e3 * row["high"] / sizes[name]],
                "ratio": each / reference,
                "compile_seconds": row["first"] - row["seconds"],
                "residual_rms": residual,
                "mean_steps": None if solution is None else float(jnp.mean(solution.stats.num_steps)),
            }
        )
        line = rows[-1]
        steps = "" if line["mean_steps"] is None else f"  steps {line['mean_steps']:.1f}"
        print(
            f"{title:22} {name:34} {line['ms_per_solve']:9.4f} ms  ratio {line['ratio']:8.1f}  residual {residual:.3g}"
            f"  n {sizes[name]}{steps}  compile {line['compile_seconds']:.1f} s",
            flush=True,
        )
    return rows


def per_step(problem: pj.Problem, inverse: Any, x0: Any, rounds: int) -> dict[str, Any]:
    """A turn of the loop of the default form against f, its VJP and g timed alone at the same batch size."""
    forward = problem.forward.fn
    solver = solvers.DIPG(inverse, atol=1e-9, rtol=0.0, jump_first=False)
    value = jax.jit(jax.vmap(forward))
    pull = jax.jit(jax.vmap(lambda x, r: jax.vjp(forward, x)[1](r)[0]))
    guess = jax.jit(jax.vmap(inverse))
    x, y = jnp.full_like(x0, 0.5), problem.data
    found = race(
        {
            "short": compiled(problem, solver, x0, 0),
            "long": compiled(problem, solver, x0, 20),
            "f": lambda: value(x),
            "f and VJP": lambda: pull(x, y),
            "g": lambda: guess(y),
        },
        rounds,
    )
    stats = found["long"]["value"].stats
    turns = int(jnp.max(stats.num_steps + stats.num_rejected))
    turn = (found["long"]["seconds"] - found["short"]["seconds"]) / turns
    parts = {name: 1e6 * found[name]["seconds"] for name in ("f", "f and VJP", "g")}
    floor = (found["f and VJP"]["seconds"] + found["g"]["seconds"]) * 1e6
    row = {"turns": turns, "turn_us": 1e6 * turn, "floor_us": floor, "ratio": 1e6 * turn / floor, "parts_us": parts}
    print(f"per turn of {x0.shape[0]} lanes {row['turn_us']:.0f} us; f + VJP + g {floor:.0f} us; {row['ratio']:.2f}x")
    return row


def main(argv: Sequence[str]) -> None:
    """Trains what is needed (about half a minute), races, prints and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num", type=int, default=300, help="observations in the batch, at most 300")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    num, rounds = options.num, options.rounds

    dataset = suite.HEAT1D.dataset(seed=0, num_test=num, dtype=jnp.float32, quick=False)
    keys = jax.random.split(jax.random.key(options.seed))
    inverse = _inverse.train_inverse(dataset, key=keys[0], folder=None, progress=None, quick=False).inverse
    surrogate = fit_surrogate(dataset, keys[1])
    x0 = jnp.zeros_like(dataset.test.x)
    physics = pj.Problem(dataset.physics, dataset.test.y, BOX)
    report: dict[str, Any] = environment() | {"seed": options.seed, "dtype": "float32", "rounds": rounds, "rows": []}

    few = min(num, 20)
    scipy_call = scipy_rows(dataset, few, TOLERANCE)
    stop: dict[str, Any] = {"atol": TOLERANCE}
    report["rows"] += contest(
        "physics, res <= 0.30",
        physics,
        {
            "D-IPG, default": (solvers.DIPG(inverse, **stop), 100),
            "D-IPG, default, from 0": (solvers.DIPG(inverse, jump_first=False, **stop), 100),
            "Safeguarded": (solvers.Safeguarded(inverse, **stop), 100),
            "LM (Cholesky)": (solvers.LevenbergMarquardt(**stop), 100),
            "LM (CG)": (solvers.LevenbergMarquardt(solvers.ConjugateGradients(), **stop), 100),
            "Gauss-Newton (SVD)": (solvers.GaussNewton(**stop), 100),
            "L-BFGS": (solvers.LBFGS(**stop), 100),
            "optimistix LM, stopped at 0.30": (StopsAtResidual(rtol=1e-3, atol=1e-3), 100),
            "optimistix LM, its own stop 1e-1": (optx.LevenbergMarquardt(rtol=1e-1, atol=1e-1), 100),
        },
        x0,
        rounds,
        {"SciPy least_squares, one by one": (scipy_call, few)},
    )
    report["rows"] += contest(
        "surrogate, res <= 0.30",
        pj.Problem(surrogate, dataset.test.y, BOX),
        {
            "D-IPG, default": (solvers.DIPG(inverse, **stop), 100),
            "LM (Cholesky)": (solvers.LevenbergMarquardt(**stop), 100),
        },
        x0,
        rounds,
        {},
    )
    published, start, g = published_problem(num)
    rules: dict[str, Any] = {"atol": TOLERANCE, "rtol": 0.0, "search": solvers.PublishedArmijo()}
    report["rows"] += contest(
        "published surrogate",
        published,
        {
            "D-IPG, paper form": (solvers.DIPG(g, proposal="paper", relaxation=0.4, **rules), 120),
            "D-IPG, defect form": (solvers.DIPG(g, **stop), 120),
            "LM, damping 0.01": (
                solvers.LevenbergMarquardt(damping=1e-2, relaxation=0.4, active_set=False, **rules),
                120,
            ),
        },
        start,
        rounds,
        {},
    )
    latent = _heat1d.train_latent(dataset, key=keys[1], folder=None, progress=None, quick=False)
    z = jax.random.normal(jax.random.key(777), (num, 5))
    tight: dict[str, Any] = {"atol": 1e-4}
    report["rows"] += contest(
        "5 latents to 1e-4",
        pj.Problem(latent.forward.fn, jax.vmap(latent.forward.fn)(z)),
        {
            "D-IPG, default": (solvers.DIPG(latent.inverse, **tight), 100),
            "Safeguarded": (solvers.Safeguarded(latent.inverse, **tight), 100),
            "LM (Cholesky)": (solvers.LevenbergMarquardt(**tight), 100),
            "LM (CG)": (solvers.LevenbergMarquardt(solvers.ConjugateGradients(), **tight), 100),
            "Gauss-Newton (SVD)": (solvers.GaussNewton(**tight), 100),
            "L-BFGS": (solvers.LBFGS(**tight), 100),
            "optimistix LM, stopped at 1e-4": (StopsTight(rtol=1e-8, atol=1e-8), 100),
        },
        jnp.zeros_like(z),
        rounds,
        {},
    )
    report["per_step"] = per_step(physics, inverse, x0, rounds)
    if options.out:
        _store.write_json(options.out, report)
