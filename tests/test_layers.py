"""The package's shape: imports between rooms point downwards, and nothing heavy is imported by default."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "pinv_jax"
LEVELS = {
    "maps": 0,
    "_solution": 0,
    "_store": 0,
    "_progress": 0,
    "_mesh": 0,
    "_problem": 1,
    "diagnostics": 1,
    "pde": 2,
    "learn": 2,
    "solvers": 2,
    "lifted": 3,
    "diffusion": 3,
    "data": 4,
    "io": 4,
    "plots": 4,
    "suite": 5,
    "cli": 6,
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
HEAVY = {"flax", "matplotlib"}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms of this package that a file imports anywhere, its own included."""
    parents = ("pinv_jax", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(parents[: len(parents) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            modules = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            if parts[0] == "pinv_jax":
                yield parts[1] if len(parts) > 1 else "the package itself"


def module_level_imports(tree):
    """Top-level names imported when the module is: anything outside functions and `if TYPE_CHECKING`."""
    for node in tree:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from module_level_imports(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from module_level_imports([child for child in ast.iter_child_nodes(node)])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    room = room_of(path)
    assert room in LEVELS, f"{room} is not a room: give it a level in the design first"
    for other in imported_rooms(path):
        if other != room:
            assert other in LEVELS, f"{path.name} imports {other}: import from the room that defines it"
            assert LEVELS[other] < LEVELS[room], f"{room} imports {other}, which is not on a lower level"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_heavy_at_module_level(path):
    assert not HEAVY & set(module_level_imports(ast.parse(path.read_text()).body))


def test_the_checks_see_what_they_look_for(tmp_path):
    tree = ast.parse("import os\nif True:\n    from flax import nnx\ndef f():\n    import matplotlib\n").body
    assert set(module_level_imports(tree)) == {"os", "flax"}
    heat = PACKAGE / "pde" / "_heat.py"
    assert {"maps", "pde"} == set(imported_rooms(heat))


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, pinv_jax; print(sorted({HEAVY} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert out.stdout.strip() == "[]"
