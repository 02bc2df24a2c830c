"""The rooms of the house: who may import whom, and which third-party package appears where."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tensorfarm.workers.bootstrap import WHAT_RUNS_ANYWHERE

from .tree import ROOT, distribution, lines, product_files

# A room may import itself and those listed; the longest name that fits a file is its room. Every room of the server may also
# import a root file of the server that knows no room itself (see is_leaf).
BEHIND_DOORS = ("server/dispatch", "server/farm", "server/repository", "server/service", "server/inference_service")
MAY_IMPORT = {
    "shm": (),
    "workers/contract": ("shm",),
    "workers": ("shm", "workers"),
    "workers/portable": (),
    "server/dispatch": ("shm", "workers/contract"),
    "server/farm": ("shm", "workers/contract", "server/dispatch"),
    "server/repository": ("shm", "workers/contract", "server/dispatch", "server/farm"),
    "server/door": ("shm", "workers/contract", *BEHIND_DOORS),
    "server/grpc": ("shm", "workers/contract", *BEHIND_DOORS, "server/door"),
    "server/http": ("shm", "workers/contract", *BEHIND_DOORS, "server/door"),
    # It hangs on the same lifeline as a worker does, and starts as the server process does.
    "server/front_end": (
        *("shm", "workers/contract", "workers/lifeline", "server/ahead"),
        *(*BEHIND_DOORS, "server/door", "server/http", "server/grpc"),
    ),
    "server": ("shm", "workers/contract", "server"),
}

# Third-party packages that are confined: to these files and folders only.
CONFINED = {
    "cupy": ("shm/cuda.py",),
    "hpack": ("server/grpc",),
    "hypercorn": ("server/http",),
    "onnxruntime": tuple(f"workers/backends/onnxruntime{part}.py" for part in ("", "_device", "_executor")),
    "posix_ipc": ("shm/system.py",),
    "redis": ("server/redis_cache.py",),
    "starlette": ("server/http",),
    "tensorrt": ("workers/backends/tensorrt.py",),
    "zmq": ("server/farm/channel.py", "server/front_end/link.py", "workers/bootstrap.py", "workers/channel.py"),
}

# Import names that differ from the distribution's.
DISTRIBUTIONS = {
    "cupy": "cupy-cuda13x",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "pynvml": "nvidia-ml-py",
    "zmq": "pyzmq",
}

# Packages of which only a file is loaded, and who looks for it.
LOOKED_UP = {"tritonclient": "workers/contract/configuration.py"}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import of a file; our own ones as paths below the checkout (``shm/arena``)."""
    tree = ast.parse((ROOT / path).read_text(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.ImportFrom):
            # level 1 is the package that holds the file
            base = path.parents[node.level - 1]
            target = base / (node.module or "").replace(".", "/")
            yield from ((node.lineno, (target / alias.name).as_posix() if not node.module else target.as_posix()) for alias in node.names)


def imported_at_once(path: Path) -> Iterator[str]:
    """The modules that a file's own import brings with it: not those that its functions import, nor those for type checkers."""
    for node in ast.parse((ROOT / path).read_text(), str(path)).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            target = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
            parts = [(target / alias.name).as_posix() for alias in node.names]
            yield from (part if (ROOT / f"{part}.py").exists() else target.as_posix() for part in parts)


def inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def is_ours(module: str) -> bool:
    return module.partition("/")[0] in ("shm", "server", "workers")


def third_party(path: Path) -> Iterator[tuple[int, str]]:
    """Line and distribution of every import that is neither ours nor the standard library's."""
    for line, module in imported(path):
        top = module.partition(".")[0]
        if not is_ours(module) and top not in sys.stdlib_module_names:
            yield line, DISTRIBUTIONS.get(top, distribution(top))


def is_leaf(module: str, above: tuple[str, ...] = ()) -> bool:
    """Whether a module is a root file of the server that needs only the contract, shm and files like itself."""
    path = Path(f"{module}.py")
    if path.parent != Path("server") or not (ROOT / path).exists() or module in above:
        return False
    ours = (target for _, target in imported(path) if is_ours(target))
    return all(any(inside(target, room) for room in ("shm", "workers/contract")) or is_leaf(target, (*above, module)) for target in ours)


def test_rooms_import_only_what_lies_below_them() -> None:
    wrong = []
    for path in product_files():
        room = max((room for room in MAY_IMPORT if inside(path.as_posix(), room)), key=len)
        for line, module in imported(path):
            if inside(module.partition(".")[0], "tensorfarm"):
                wrong.append(f"{path}:{line} imports {module}; imports inside the product are relative")
            elif is_ours(module) and not any(inside(module, allowed) for allowed in (room, *MAY_IMPORT[room])):
                if not (inside(room, "server") and is_leaf(module)):
                    wrong.append(f"{path}:{line} ({room}) imports {module}")
    assert not wrong, "\n".join(wrong)


def test_third_party_packages_stay_where_they_belong() -> None:
    wrong = []
    for path in product_files():
        for line, module in imported(path):
            places = CONFINED.get(module.partition(".")[0])
            if places and not any(inside(path.as_posix(), place) for place in places):
                wrong.append(f"{path}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_models_own_interpreters_need_numpy_only() -> None:
    """All that a worker there imports must do without our dependencies, but for those that have stand-ins."""
    there = {"numpy", "msgspec", "zmq"}
    reached = {"workers/bootstrap", *(name.replace(".", "/") for name in WHAT_RUNS_ANYWHERE)}
    waiting = sorted(reached)
    wrong = []
    while waiting:
        path = Path(f"{waiting.pop()}.py")
        for module in imported_at_once(path) if (ROOT / path).exists() else ():
            if is_ours(module) and module not in reached:
                reached.add(module)
                waiting.append(module)
            elif not is_ours(module) and module.partition(".")[0] not in there | set(sys.stdlib_module_names):
                wrong.append(f"{path} imports {module}")
    assert not wrong, "\n".join(wrong)
    assert len(reached) > 20


def test_every_third_party_package_is_declared() -> None:
    declared = {distribution(line) for line in lines("options", "install_requires")}
    for extra in ("cpu", "gpu", "redis"):
        declared |= {distribution(line) for line in lines("options.extras_require", extra)}
    wrong = [f"{path}:{line} needs {name}" for path in product_files() for line, name in third_party(path) if name not in declared]
    assert not wrong, "\n".join(wrong)


def test_every_required_package_is_used() -> None:
    required = {distribution(line) for line in lines("options", "install_requires")}
    looked_up = {name for name, path in LOOKED_UP.items() if f'find_spec("{name}")' in (ROOT / path).read_text()}
    assert required - {name for path in product_files() for _, name in third_party(path)} - looked_up == set()


def test_files_stay_readable() -> None:
    long = {path.as_posix(): (ROOT / path).read_text().count("\n") for path in product_files()}
    assert {path: count for path, count in long.items() if count > 600} == {}
