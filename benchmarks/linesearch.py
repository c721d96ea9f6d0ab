"""Line searches under vmap: nested loops, all trials at once, or one trial carried per turn (the library's).

On the published surrogate the carried search wins where most trials fail (paper form, twice as fast as nested); where
searches succeed but many lanes run into the cap (defect form with an inverse this poor) nested is a quarter faster, for
it evaluates no derivatives at trials. The carried form also skips derivatives in turns in which no lane is accepted,
needs one loop only, and lets `max_steps` and the history count accepted steps; it is the one the library keeps.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pinv_jax as pj
from pinv_jax import _store, solvers
from pinv_jax.solvers import _descent as base

from ._timing import environment, race
from .throughput import published_problem


class _WholeSearch(solvers.DIPG):
    """A step that makes all trials of an iterate; subclasses say how."""

    def search_along(self, problem: Any, x: Any, state: Any) -> tuple[Any, Any, Any, Any]:
        """Returns (x of the accepted trial, its step size, accepted, trials)."""
        raise NotImplementedError

    def judge(self, problem: Any, x: Any, state: Any, step_size: Any) -> tuple[Any, Any]:
        """One trial, without derivatives: the point and whether it is acceptable."""
        displacement, _ = self.descent.displacement(problem, x, state.point, state.memo, step_size)
        x_try = problem.feasible(x + displacement)
        objective = problem.merit(x_try, problem.forward(x_try))
        new = solvers.Point(state.point.prediction, state.point.residual, objective, state.point.gradient)
        trial = base.make_trial(state.point, new, x, x_try, displacement, objective, step_size)
        accept, _ = self.search.judge(trial)
        return x_try, accept & jnp.isfinite(objective)

    def step(self, problem: Any, x: Any, state: Any) -> tuple[Any, Any]:
        """All trials of one iterate, then the derivatives at the accepted point."""
        x_try, step_size, accept, trials = self.search_along(problem, x, state)
        point, gradient = base.evaluate(problem, x_try)
        point = base.with_gradient(point, gradient())
        memo, _ = self.descent.update(problem, x_try, point, state.memo)
        here = base.select(accept, point, state.point)
        record = state.record
        record = solvers.Record(
            num_steps=record.num_steps + accept,
            num_rejected=record.num_rejected + trials - accept,
            num_fallbacks=record.num_fallbacks,
            evaluations=record.evaluations,
            residual_rms=problem.residual_rms(here.residual),
            objective=here.objective,
            step_size=jnp.where(accept, step_size, record.step_size),
            rjcp=record.rjcp,
        )
        return jnp.where(accept, x_try, x), base.DescentState(
            record,
            here,
            base.select(accept, memo, state.memo),
            state.step_size,
            jnp.where(accept, 0, self.search.max_trials),
            state.promise,
        )


class Nested(_WholeSearch):
    """A loop over trials inside the loop over steps: a batch waits for its slowest search at every step."""

    def search_along(self, problem: Any, x: Any, state: Any) -> tuple[Any, Any, Any, Any]:
        """See `_WholeSearch`."""

        def cond(carry: Any) -> Any:
            _, _, accept, trials = carry
            return ~accept & (trials < self.search.max_trials)

        def body(carry: Any) -> Any:
            _, step_size, _, trials = carry
            x_try, accept = self.judge(problem, x, state, step_size)
            return x_try, jnp.where(accept, step_size, 0.5 * step_size), accept, trials + 1

        start = (x, state.step_size, jnp.asarray(False), jnp.zeros((), jnp.int32))
        return jax.lax.while_loop(cond, body, start)


class Parallel(_WholeSearch):
    """All trials at once, the first acceptable one is taken: wide work, most of it in vain."""

    def search_along(self, problem: Any, x: Any, state: Any) -> tuple[Any, Any, Any, Any]:
        """See `_WholeSearch`."""
        sizes = state.step_size * 0.5 ** jnp.arange(self.search.max_trials, dtype=x.dtype)
        x_try, accept = jax.vmap(lambda size: self.judge(problem, x, state, size))(sizes)
        first = jnp.argmax(accept)
        any_accepted = jnp.any(accept)
        return x_try[first], sizes[first], any_accepted, jnp.where(any_accepted, first + 1, len(sizes))


def main(argv: Sequence[str]) -> None:
    """Races the three searches on the published Heat-1D surrogate; the answers must agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks linesearch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--num", type=int, default=300, help="observations in the batch")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    problem, x0, g = published_problem(options.num)
    forms = {
        "paper": {"proposal": "paper", "relaxation": 0.4, "search": solvers.PublishedArmijo()},
        "defect": {"proposal": "defect"},
    }
    report: dict[str, Any] = environment() | {"num": options.num, "dtype": str(x0.dtype), "rows": []}
    for form, settings in forms.items():
        kinds = {"carried": solvers.DIPG, "nested": Nested, "parallel": Parallel}
        methods = {name: kind(g, atol=0.3, rtol=0.0, **settings) for name, kind in kinds.items()}
        found = race(
            {name: lambda m=m: pj.solve_batch(problem, m, x0, max_steps=120) for name, m in methods.items()},
            options.rounds,
        )
        reference = found["carried"]
        for name, row in found.items():
            same = np.mean(np.asarray(row["value"].stats.num_steps == reference["value"].stats.num_steps))
            gap = float(jnp.max(jnp.abs(row["value"].value - reference["value"].value)))
            # The same rules in another order of evaluation: only rounding may tell them apart.
            assert same >= 0.95, f"{name} took other steps than the library's search"
            report["rows"].append(
                {
                    "form": form,
                    "search": name,
                    "ms_per_solve": 1e3 * row["seconds"] / options.num,
                    "ratio_to_carried": row["seconds"] / reference["seconds"],
                    "first_call_seconds": row["first"],
                    "equal_steps_share": float(same),
                    "largest_difference": gap,
                }
            )
            line = report["rows"][-1]
            print(
                f"{form:7} {name:9} {line['ms_per_solve']:.4f} ms/solve  ratio {line['ratio_to_carried']:.2f}  "
                f"first call {row['first']:.2f} s  equal steps {100 * same:.1f} %  largest difference {gap:.1e}"
            )
    if options.out:
        _store.write_json(options.out, report)
