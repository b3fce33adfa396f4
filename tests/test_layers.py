"""The floors of the package: imports point down only, and only the top floor knows Ray.

The first half reads every import of every file from its syntax tree (imports inside functions and
under TYPE_CHECKING count too); the second imports the two lower floors for real.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "rematch_ray"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

GROUND = {"errors", "scoring", "losses", "collectives"}
MIDDLE = {"config", "config_file", "data", "model", "training", "index", "evaluation"}
TOP = {"workloads", "serve", "commands", "cli", "__init__", "__main__"}

# what every part of the middle floor may use: how settings are read is nobody's own
SHARED = GROUND | {"config_file"}

# the parts of the package that each part may import, itself included
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "scoring": {"errors", "scoring"},
    "collectives": {"errors"},
    "losses": {"errors", "scoring", "collectives", "losses"},
    "config_file": {"errors"},
    "data": SHARED | {"data"},
    "model": SHARED | {"data", "model"},
    "training": SHARED | {"data", "model", "training"},
    "index": SHARED | {"data", "model", "index"},
    "evaluation": SHARED | {"data", "model", "index", "evaluation"},
    "config": GROUND | MIDDLE,
    "workloads": GROUND | MIDDLE | {"workloads"},
    "serve": GROUND | MIDDLE | {"serve"},
    "commands": GROUND | MIDDLE | {"workloads", "serve", "commands"},
    "cli": {"errors", "commands", "cli"},
    "__init__": GROUND | MIDDLE | {"workloads", "serve"},
    "__main__": {"cli"},
}
GROUND_LIBRARIES = {"torch", "numpy"}
TOP_LIBRARIES = {"ray", "fastapi", "starlette", "uvicorn"}

# imports between workloads point left only
WORKLOADS = [
    "autoscaling", "runtime", "journal", "run_directory", "pauses", "stages", "ahead", "stream",
    "staging", "disk", "ledger", "shard_files", "embedding_job", "account", "shards",
    "validation", "tracking", "training_plot", "watch", "bad_rows", "checkpoints", "resuming",
    "preemption", "loop", "train", "embed_data", "embed_stages", "embed_progress", "embed_actor",
    "embed", "mining_tasks", "mining_job", "mining_inputs", "mining_runs", "mining_galleries",
    "mine", "build_index", "evaluate", "pretrain_tiny",
    "stamps", "showcase", "demo_lines", "demo",
]  # fmt: skip


def modules() -> list[str]:
    """Dotted names of every module of the package, `__init__` files included."""
    paths = sorted(path.relative_to(ROOT.parent) for path in ROOT.rglob("*.py"))
    return [".".join(path.with_suffix("").parts) for path in paths if "assets" not in path.parts]


def source_of(module: str) -> str:
    return (ROOT.parent / Path(*module.split("."))).with_suffix(".py").read_text()


def imports_of(module: str, source: str, known: set[str]) -> Iterator[str]:
    """Yield the dotted name of everything that the source imports.

    `from a.b import c` yields `a.b.c` when that is a module of ours, else `a.b`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                # a public name of the package itself is lazy: what it stands for is not seen here
                is_module = bool({name, f"{name}.__init__"} & known)
                yield name if is_module or base == PACKAGE else base


def violations(module: str, source: str, known: set[str]) -> list[str]:
    """Return one line per import of the module that its floor does not allow."""
    part = module.split(".")[1]
    found = []
    for name in imports_of(module, source, known):
        top = name.split(".")[0]
        if top == PACKAGE:
            target = [*name.split("."), "__init__"][1]
            if target == "__version__":
                continue
            if target not in ALLOWED.get(part, set()):
                found.append(f"{module} imports {name}: {part} may not import {target}")
            elif part == target == "workloads" and not points_left(module, name):
                found.append(f"{module} imports {name}: workloads import to the left only")
        elif part in GROUND and top not in GROUND_LIBRARIES | set(sys.stdlib_module_names):
            found.append(f"{module} imports {name}: the ground floor has torch and numpy only")
        elif part in MIDDLE and top in TOP_LIBRARIES:
            found.append(f"{module} imports {name}: only the top floor knows {top}")
    return found


def points_left(importer: str, imported: str) -> bool:
    """Whether one module of workloads may import the other."""
    places = {name: place for place, name in enumerate(WORKLOADS)}
    right = places.get(importer.split(".")[2], -1)
    return places.get(".".join(imported.split(".")[2:3]), len(places)) < right


def test_every_module_stands_on_a_floor() -> None:
    parts = {module.split(".")[1] for module in modules()}
    unplaced = sorted(parts - GROUND - MIDDLE - TOP)
    assert not unplaced, f"{unplaced}: give each a floor in tests/test_layers.py and the design"


def test_every_workload_has_a_place_in_the_order() -> None:
    names = {m.split(".")[2] for m in modules() if m.split(".")[1] == "workloads"}
    unplaced = sorted(names - set(WORKLOADS) - {"__init__"})
    assert not unplaced, f"{unplaced}: give each a place in WORKLOADS"


def test_imports_point_down_only() -> None:
    names = modules()
    known = set(names)
    found = [line for name in names for line in violations(name, source_of(name), known)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rematch_ray.scoring.maxsim", "import transformers"),
        ("rematch_ray.scoring.maxsim", "from rematch_ray.losses import joint"),
        ("rematch_ray.losses.joint", "from ..model.embedder import Embedder"),
        ("rematch_ray.data.collate", "def read():\n    import ray.data"),
        ("rematch_ray.data.collate", "from ..model import embedder"),
        ("rematch_ray.model.embedder", "from rematch_ray import training"),
        ("rematch_ray.index.search", "from rematch_ray.evaluation.metrics import recall"),
        ("rematch_ray.index.search", "from rematch_ray.training.step import Training"),
        ("rematch_ray.evaluation.report", "import fastapi"),
        ("rematch_ray.serve.app", "from rematch_ray.workloads.runtime import connect"),
        ("rematch_ray.serve.app", "from rematch_ray import Embedder"),
        ("rematch_ray.workloads.embed", "from rematch_ray.serve import app"),
        ("rematch_ray.workloads.stages", "from rematch_ray.workloads.embed import embed"),
        ("rematch_ray.workloads.train", "from . import demo"),
        ("rematch_ray.workloads.train", "from rematch_ray import cli"),
    ],
)
def test_an_import_that_points_up_is_found(module: str, source: str) -> None:
    known = {"rematch_ray.workloads.demo", "rematch_ray.training.__init__", "rematch_ray.cli"}
    assert violations(module, source, known)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rematch_ray.scoring.maxsim", "import math\nimport torch.nn.functional as F"),
        ("rematch_ray.losses.joint", "from rematch_ray.scoring.budget import Budget"),
        ("rematch_ray.model.embedder", "from ..data.collate import Batch\nimport peft"),
        ("rematch_ray.workloads.demo", "from . import train\nimport ray"),
        ("rematch_ray.index.store", "from rematch_ray import __version__"),
        ("rematch_ray.serve.app", "from rematch_ray.index.search import SearchIndex\nimport ray"),
    ],
)
def test_an_import_that_points_down_is_allowed(module: str, source: str) -> None:
    assert not violations(module, source, {"rematch_ray.workloads.train"})


def loaded_after(statements: str) -> set[str]:
    """Return the top-level names in sys.modules of a fresh interpreter that ran the statements."""
    program = f"{statements}\nimport sys\nprint(*sorted({{n.split('.')[0] for n in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "ray", "numpy", "pyarrow", "faiss", "PIL", "pydantic"}
    assert not loaded_after(f"import {PACKAGE}") & heavy


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "ray", "pyarrow", "faiss"}
    assert not loaded_after(f"import {PACKAGE}.cli") & heavy


def test_the_ground_floor_loads_no_more_than_torch() -> None:
    names = [m.removesuffix(".__init__") for m in modules() if m.split(".")[1] in GROUND]
    loaded = loaded_after("\n".join(f"import {name}" for name in names))
    assert not loaded & {"ray", "transformers", "pyarrow", "faiss", "PIL", "pydantic"}


def test_the_lower_floors_never_load_ray() -> None:
    names = [m.removesuffix(".__init__") for m in modules() if m.split(".")[1] in GROUND | MIDDLE]
    assert "ray" not in loaded_after("\n".join(f"import {name}" for name in names))
