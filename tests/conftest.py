import gc
import os
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")

hook = install_import_hook("pinv_jax", "beartype.beartype")
hook.__enter__()  # for the whole session: annotated shapes are checked in every test

from pinv_jax.cli import collect_rarely, compile_quickly  # noqa: E402 - after the hook

MAPS = Path("/proc/self/maps")


def pytest_configure(config: pytest.Config) -> None:
    """Most tests are mostly compilation; those marked `optimised` are compiled as a user's programs are.

    So is all of it with `XLA_FLAGS= pytest`.
    """
    if config.getoption("markexpr") == "optimised":
        os.environ.setdefault("XLA_FLAGS", "")
    compile_quickly()
    collect_rarely()


@pytest.fixture(scope="module", autouse=True)
def _release_compiled_functions():
    """Each compiled function maps some memory, and Linux allows a process 65530 maps: beyond, the compiler crashes."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
