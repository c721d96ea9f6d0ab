"""Interleaved timing: every contestant in turn, several rounds, medians and ratios; compile time apart."""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np


def environment() -> dict[str, Any]:
    """What every table must say beside its numbers."""
    names = ("pinv_jax", "jax", "jaxlib", "equinox", "diffrax", "optimistix", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()}
    device = jax.devices()[0]
    return {"device": f"{device.platform} {device.device_kind}", "processor": platform.machine(), "versions": versions}


def wait(value: Any) -> Any:
    """Blocks until every array of `value` is there."""
    jax.block_until_ready(eqx.filter(value, eqx.is_array))
    return value


def race(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Runs every contestant once for compilation, then all of them in turn, `rounds` times.

    Returns:
        By name: `value` of the last call, `first` (seconds of the first call, compilation included), `seconds`
        (median), `low` and `high` (quartiles).
    """
    found: dict[str, dict[str, Any]] = {}
    for name, call in contestants.items():
        start = time.perf_counter()
        wait(call())
        found[name] = {"first": time.perf_counter() - start, "all": []}
    for _ in range(rounds):
        for name, call in contestants.items():
            start = time.perf_counter()
            found[name]["value"] = wait(call())
            found[name]["all"].append(time.perf_counter() - start)
    for row in found.values():
        row["low"], row["seconds"], row["high"] = np.quantile(row.pop("all"), [0.25, 0.5, 0.75])
    return found
