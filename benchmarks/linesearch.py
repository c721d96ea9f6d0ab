"""Line searches under vmap, for every solver that searches: nested, parallel, or one trial carried per turn.

*Carried* is the library's: one trial per lane per turn of the loop. *Nested* puts a loop over the trials of an iterate
inside the loop over iterates, so that a batch waits for its slowest search at every step. *Parallel* makes all trials
of an iterate at once and takes the first acceptable one. The rules are the solver's own in all three, so that only
rounding tells their answers apart; derivatives are evaluated in all three only at accepted trials.

On a CPU (the committed report: one core of a busy machine; in another run single ratios differed by up to a half)
parallel loses for every solver, 4.0 times the time of carried in the geometric mean. Nested takes 1.13 times that of
carried: carried wins where a trial costs as much as a step (safeguarded 1.6, Levenberg-Marquardt 1.1 to 1.6), where
every lane searches (the paper form of D-IPG 1.5) and for gradient descent (up to 2.4); nested wins where the long
searches of a few lanes make derivatives worth saving up for (the defect form of D-IPG with an inverse as poor as this
0.8, L-BFGS 0.7 to 0.85); Gauss-Newton is level. The library keeps the carried one for every solver: it wins or is level
for most, loses a third at worst, needs one loop, and only with it can a lane retire between two trials.
"""

import abc
import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pinv_jax as pj
from pinv_jax import _store, solvers
from pinv_jax.solvers._descent import select

from ._timing import environment, race
from .lanes import phase_retrieval
from .throughput import published_problem

KEPT = ("step_size", "num_trials", "promise", "learned")  # of a state: what a rejected trial changes


class _Known(solvers.AbstractDescent[Any]):
    """A descent whose displacement at the trial in question is known already."""

    inner: Any
    moved: Any
    model: Any

    def init(self, problem: Any, x: Any, point: Any) -> Any:
        """See `AbstractDescent`."""
        return self.inner.init(problem, x, point)

    def update(self, problem: Any, x: Any, point: Any, memo: Any) -> Any:
        """See `AbstractDescent`."""
        return self.inner.update(problem, x, point, memo)

    def displacement(self, problem: Any, x: Any, point: Any, memo: Any, step_size: Any) -> Any:
        """See `AbstractDescent`."""
        return self.moved, solvers.Evaluations()

    def predicted(self, problem: Any, x: Any, point: Any, memo: Any, moved: Any) -> Any:
        """See `AbstractDescent`."""
        return self.model, solvers.Evaluations()


class _WholeSearch(solvers.AbstractSolver[Any]):
    """A solver whose step makes all trials of an iterate; subclasses say how."""

    inner: Any
    stop: solvers.Stop

    def __init__(self, inner: Any):
        self.inner, self.stop = inner, inner.stop

    def init(self, problem: Any, x: Any, *, key: Any = None) -> Any:
        """See `AbstractSolver`."""
        return self.inner.init(problem, x, key=key)

    def terminate(self, problem: Any, x: Any, state: Any) -> Any:
        """See `AbstractSolver`."""
        return self.inner.terminate(problem, x, state)

    def step(self, problem: Any, x: Any, state: Any) -> Any:
        """The search without derivatives, then its accepted trial once more with them."""
        kept, known, accept, trials = self.search_along(problem, x, state)
        before = _with_kept(state, kept)
        x_new, after = self._solver(known).step(problem, x, before)
        x, state = select(accept, (x_new, after), (x, before))
        rejected = state.record.num_rejected + trials - accept
        return x, eqx.tree_at(lambda s: s.record.num_rejected, state, rejected)

    @abc.abstractmethod
    def search_along(self, problem: Any, x: Any, state: Any) -> Any:
        """Returns (what a state keeps before the accepted trial, what is known of it, accepted, trials)."""

    def _solver(self, known: Any) -> Any:
        """With the displacement of the trial, if it is one that a descent made."""
        return self.inner if known is None else eqx.tree_at(lambda s: s.descent, self.inner, _Known(*known))

    def nothing_known(self, x: Any, state: Any) -> Any:
        """Of the structure of what is known of a trial."""
        if not hasattr(self.inner, "descent"):
            return None
        return self.inner.descent, jnp.zeros_like(x), jnp.zeros_like(state.step_size)

    def make_trial(self, problem: Any, x: Any, state: Any, kept: Any) -> Any:
        """Returns (what a state keeps after the trial, what is known of it, accepted, the solve ends here).

        The derivatives of `step` are dead code here, as nothing uses them.
        """
        state, known = _with_kept(state, kept), None
        if hasattr(self.inner, "descent"):
            descent = self.inner.descent
            moved, _ = descent.displacement(problem, x, state.point, state.memo, state.step_size)
            model, _ = descent.predicted(problem, x, state.point, state.memo, problem.feasible(x + moved) - x)
            known = descent, moved, model
        _, after = self._solver(known).step(problem, x, state)
        accept = after.record.num_steps > state.record.num_steps
        failed = _with_kept(state, _kept(after))
        done, _ = self.inner.terminate(problem, x, failed)
        return _kept(after), known, accept, done & ~accept


def _kept(state: Any) -> dict[str, Any]:
    return {name: getattr(state, name) for name in KEPT if hasattr(state, name)}


def _with_kept(state: Any, kept: dict[str, Any]) -> Any:
    return eqx.tree_at(lambda s: [getattr(s, name) for name in kept], state, list(kept.values()))


class Nested(_WholeSearch):
    """A loop over trials inside the loop over steps: a batch waits for its slowest search at every step."""

    def search_along(self, problem: Any, x: Any, state: Any) -> Any:
        """See `_WholeSearch`."""

        def cond(carry: Any) -> Any:
            *_, accept, done, _ = carry
            return ~accept & ~done

        def body(carry: Any) -> Any:
            kept, *_, trials = carry
            after, known, accept, done = self.make_trial(problem, x, state, kept)
            arrays = eqx.filter(known, eqx.is_array)
            return select(accept, kept, after), arrays, accept, done, trials + 1

        known = self.nothing_known(x, state)
        arrays, rest = eqx.partition(known, eqx.is_array)
        no = jnp.zeros((), bool)
        start = (_kept(state), arrays, no, no, jnp.zeros((), jnp.int32))
        kept, arrays, accept, _, trials = jax.lax.while_loop(cond, body, start)
        return kept, eqx.combine(arrays, rest), accept, trials


class Parallel(_WholeSearch):
    """All trials at once, the first acceptable one is taken: wide work, most of it in vain."""

    def search_along(self, problem: Any, x: Any, state: Any) -> Any:
        """See `_WholeSearch`."""
        rule = getattr(self.inner, "search", getattr(self.inner, "damping", None))
        shrink = 0.5 if rule is None else rule.shrink
        fallback = hasattr(state, "learned")  # a first trial of the inverse, and then those of the fallback
        num = (self.inner if rule is None else rule).max_trials + fallback

        def reject(kept: Any, _: Any) -> Any:
            after = kept | {"step_size": shrink * kept["step_size"], "num_trials": kept["num_trials"] + 1}
            if fallback:
                after = select(kept["learned"], kept | {"learned": jnp.zeros_like(kept["learned"])}, after)
            return after, kept

        _, all_kept = jax.lax.scan(reject, _kept(state), None, length=num)
        arrays, rest = eqx.partition(self.nothing_known(x, state), eqx.is_array)

        def one(kept: Any) -> Any:
            after, known, accept, done = self.make_trial(problem, x, state, kept)
            return after, eqx.filter(known, eqx.is_array), accept, done

        all_after, all_known, accept, done = jax.vmap(one)(all_kept)
        # The first that is accepted or ends the solve; later trials do not count.
        first = jnp.argmax(accept | done)
        pick = lambda tree: jax.tree.map(lambda a: a[first], tree)
        kept = select(accept[first], pick(all_kept), pick(all_after))
        return kept, eqx.combine(pick(all_known), rest), accept[first], first + 1


def subjects(num: int) -> dict[str, tuple[Any, Any, int, dict[str, Any]]]:
    """Problem, starts, steps, and solvers by name; factorisations of 64 unknowns go with fewer observations."""
    problem, x0, g = published_problem(num)
    few, x0_few, _ = published_problem(max(1, num // 5))
    hard = phase_retrieval(num, 0)
    loose, exact, tight = {"atol": 0.3}, {"atol": 1e-3}, {"atol": 1e-4}
    cholesky, cg = solvers.Cholesky(), solvers.ConjugateGradients()
    return {
        "Heat-1D surrogate": (
            problem,
            x0,
            120,
            {
                "D-IPG, paper": solvers.DIPG(
                    g, proposal="paper", relaxation=0.4, search=solvers.PublishedArmijo(), rtol=0.0, **loose
                ),
                "D-IPG, defect": solvers.DIPG(g, rtol=0.0, **loose),
                "D-IPG, jvp": solvers.DIPG(g, proposal="jvp", **loose),
                "safeguarded": solvers.Safeguarded(g, **loose),
                "gradient descent, restarted": solvers.GradientDescent(0.4, search=solvers.Armijo(), **loose),
                "gradient descent": solvers.GradientDescent(**loose),
                "L-BFGS": solvers.LBFGS(**loose),
            },
        ),
        "Heat-1D surrogate, dense": (
            few,
            x0_few,
            60,
            {
                "Gauss-Newton, relaxed": solvers.GaussNewton(cholesky, relaxation=0.4, active_set=False, **loose),
                "LM, fixed damping": solvers.LevenbergMarquardt(
                    damping=0.64, relaxation=0.4, active_set=False, **loose
                ),
                "LM": solvers.LevenbergMarquardt(**loose),
            },
        ),
        "phase retrieval": (
            pj.Problem(hard.forward, hard.data),
            hard.x0,
            100,
            {
                "gradient descent": solvers.GradientDescent(**exact),
                "L-BFGS": solvers.LBFGS(**exact),
                "Gauss-Newton": solvers.GaussNewton(cholesky, **tight),
                "LM": solvers.LevenbergMarquardt(**tight),
                "LM, matrix-free": solvers.LevenbergMarquardt(cg, **tight),
            },
        ),
    }


def main(argv: Sequence[str]) -> None:
    """Races the three searches of every solver; the answers must agree."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks linesearch", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num", type=int, default=300, help="observations in the batch")
    parser.add_argument("--only", nargs="+", help="only these solvers")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    report: dict[str, Any] = environment() | {"dtype": "float32", "rounds": options.rounds, "rows": []}
    for subject, (problem, x0, max_steps, methods) in subjects(options.num).items():
        for name, solver in methods.items():
            if options.only is None or name in options.only:
                report["rows"] += contest(subject, name, problem, x0, max_steps, solver, options.rounds)
    report["least_equal_steps_share"] = min(row["equal_steps_share"] for row in report["rows"])
    for kind in ("nested", "parallel"):
        ratios = [row["ratio_to_carried"] for row in report["rows"] if row["search"] == kind]
        report[f"{kind}_to_carried_geometric_mean"] = math.exp(float(np.mean(np.log(ratios))))
        print(f"{kind} over carried, geometric mean: {report[f'{kind}_to_carried_geometric_mean']:.2f}")
    if options.out:
        _store.write_json(options.out, report)
    # The same rules in another order of evaluation: only rounding may tell them apart.
    assert report["least_equal_steps_share"] >= 0.95, "a search took other steps than the library's"


def contest(
    subject: str, name: str, problem: Any, x0: Any, max_steps: int, solver: Any, rounds: int
) -> list[dict[str, Any]]:
    """One solver with the three searches, in turn."""
    methods = {"carried": solver, "nested": Nested(solver), "parallel": Parallel(solver)}
    calls = {
        kind: lambda m=method: pj.solve_batch(problem, m, x0, max_steps=max_steps, mode="masked")
        for kind, method in methods.items()
    }
    found, rows = race(calls, rounds), []
    reference = found["carried"]["value"].stats
    for kind, row in found.items():
        stats = row["value"].stats
        same = float(np.mean(np.asarray(stats.num_steps == reference.num_steps)))
        objectives = np.asarray(stats.objective), np.asarray(reference.objective)
        rows.append(
            {
                "subject": subject,
                "solver": name,
                "search": kind,
                "n": x0.shape[0],
                "ms_per_solve": 1e3 * row["seconds"] / x0.shape[0],
                "ratio_to_carried": row["seconds"] / found["carried"]["seconds"],
                "first_call_seconds": row["first"],
                "steps_and_trials": [
                    float(np.mean(np.asarray(stats.num_steps))),
                    float(np.mean(np.asarray(stats.num_steps + stats.num_rejected))),
                ],
                "equal_steps_share": same,
                "median_objective_ratio": float(np.median(objectives[0] / objectives[1])),
            }
        )
        line = rows[-1]
        print(
            f"{subject:24} {name:28} {kind:9} {line['ms_per_solve']:.4f} ms/solve  ratio {line['ratio_to_carried']:.2f}"
            f"  first call {row['first']:.2f} s  steps, trials {line['steps_and_trials']}"
            f"  equal steps {100 * same:.1f} %  objectives {line['median_objective_ratio']:.4f}",
            flush=True,
        )
    return rows
