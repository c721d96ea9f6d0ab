"""What a run depends on, and the folder it owns: `Options`, `claim`, `environment`."""

import dataclasses
import importlib.metadata
import platform
import shutil
from pathlib import Path
from typing import Any

import jax

from .. import _store

FORMAT = 1
"""Raised when a folder of results can no longer be resumed by this code."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a run depends on.

    Attributes:
        seed: of data, training and probes.
        recipes: their names; all of the problem's by default.
        solvers: names that `--solver` selects; all by default. Estimates without iterations are always rows.
        num_test: test observations; the problem's number by default.
        dtype: "float32" or "float64".
        quick: small data and short training, to see that everything runs; the numbers mean nothing.
    """

    seed: int = 0
    recipes: tuple[str, ...] | None = None
    solvers: tuple[str, ...] | None = None
    num_test: int | None = None
    dtype: str = "float32"
    quick: bool = False


def check_dtype(options: Options) -> None:
    """Raises a `ValueError` where the options ask for 64 bits that are switched off."""
    if options.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError("dtype='float64' needs 64-bit mode: write `jax.config.update('jax_enable_x64', True)` first.")


def claim(out: Path, identity: dict[str, Any], *, resume: bool) -> None:
    """Makes the folder ours, or refuses to touch what is in it."""
    marker = out / "run.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; expected a folder for the results: choose another --out.")
    if out.exists() and any(out.iterdir()):
        if not marker.exists():
            raise ValueError(f"{out} holds files that are no results of this program: choose another --out.")
        found = _store.read_json(marker)
        if found.get("problem") != identity["problem"]:
            raise ValueError(
                f"{out} holds results of {found.get('problem')!r}, not {identity['problem']!r}: choose another --out."
            )
        differing = [name for name in identity if found.get(name) != identity[name]]
        if resume and differing:
            text = ", ".join(f"{name} was {found.get(name)!r}, now {identity[name]!r}" for name in differing)
            raise ValueError(f"{out} cannot be resumed: {text}. Repeat the options it was begun with.")
        if not resume:
            for name in ("fits", "rows", "models", "figures", "parts"):
                shutil.rmtree(out / name, ignore_errors=True)
            for name in ("report.json", "solutions.npz"):
                (out / name).unlink(missing_ok=True)
    _store.write_json(marker, identity)


def environment() -> dict[str, Any]:
    """Device and versions, for every report."""
    names = ("pinv_jax", "jax", "jaxlib", "equinox", "diffrax", "optimistix", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()}
    device = jax.devices()[0]
    return {"device": f"{device.platform} {device.device_kind}", "versions": versions}
