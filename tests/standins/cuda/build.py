"""Builds the libraries that ONNX Runtime's real providers for CUDA and TensorRT take for CUDA's: what they compute stays in ordinary memory.

    python -m tests.standins.cuda.build FOLDER

The onnxruntime-gpu that is installed for this Python says which libraries those are, and which functions it wants of them; those that no
source here has say so when they are called. Needs g++ and binutils; fetches NVIDIA's headers. ``FOLDER/lib`` is for ``LD_LIBRARY_PATH``,
with ``FOLDER/tensorrt`` where TensorRT is to be there as well.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
CUDA, TENSORRT = "libonnxruntime_providers_cuda.so", "libonnxruntime_providers_tensorrt.so"

_SOURCES = {
    "libcudart": ("runtime.cpp", "kernels.cpp"),
    "libcublas": ("blas.cpp",),
    "libcublasLt": ("blas_lt.cpp",),
    "libnvinfer": ("tensorrt.cpp",),
    "libnvonnxparser": ("tensorrt.cpp",),
    "libcudnn": ("tensorrt.cpp",),
}
_UNVERSIONED = {"cu": "libcuda", "createInfer": "libnvinfer", "createNvOnnx": "libnvonnxparser", "get": "libnvinfer"}
"""Which library a function is wanted of, by how its name begins, where the provider does not say."""

_OURS = re.compile(r"lib(cuda|cudart|cublas|cublasLt|curand|cufft|cudnn|nvinfer|nvonnxparser|nvrtc)\.so\.\d+")
_MISSING = """\
int {name}() {{
  fprintf(stderr, "the stand-in for CUDA has no {name} (tests/standins/cuda)\\n");
  return 801;
}}
"""


class NotBuilt(Exception):
    """Why the libraries cannot be built here, and what to do."""


def providers_folder() -> Path:
    """Where the providers lie that are installed for this Python. Raises NotBuilt."""
    spec = importlib.util.find_spec("onnxruntime")
    for place in [] if spec is None else spec.submodule_search_locations or []:
        if (Path(place) / "capi" / CUDA).exists():
            return Path(place) / "capi"
    raise NotBuilt("onnxruntime-gpu is not installed for this Python")


def _output(*command: object) -> str:
    try:
        return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise NotBuilt(f"{command[0]} is not installed (on Debian: apt-get install g++)") from None
    except subprocess.CalledProcessError as error:
        raise NotBuilt(f"{' '.join(map(str, command))} failed:\n{error.stderr}") from None


def _libraries(provider: Path) -> list[str]:
    """Which of CUDA's libraries a provider is linked to, by file name."""
    named: list[str] = re.findall(r"\(NEEDED\).*\[(.+)\]", _output("readelf", "--dynamic", "--wide", provider))
    return [name for name in named if _OURS.fullmatch(name)]


def _wanted(provider: Path) -> dict[str, set[str]]:
    """The functions that a provider wants, by the name of the library."""
    wanted = defaultdict(set)
    for line in _output("nm", "--dynamic", "--undefined-only", provider).splitlines():
        kind, symbol = line.split()
        name, _, library = symbol.partition("@")
        if _OURS.fullmatch(library):
            wanted[library.partition(".")[0]].add(name)
        elif kind == "U" and not library:
            wanted[next((owner for start, owner in _UNVERSIONED.items() if name.startswith(start)), "")].add(name)
    return wanted


def fetch_headers(folder: Path, major: str) -> Path:
    """NVIDIA's headers of the runtime, which say how its structures are laid out."""
    place = folder / "headers"
    include = place / "nvidia" / f"cu{major}" / "include"
    if not (include / "crt").is_dir():
        names = (f"nvidia-cuda-runtime=={major}.*", f"nvidia-cuda-crt=={major}.*")
        _output(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--target", place, *names)
    return include


def _compile(library: str, target: Path, wanted: Iterable[str], include: Path, links: Mapping[str, Path]) -> None:
    """Make one library: what the sources have of it, and for what they lack functions that say so."""
    name = library.partition(".")[0]
    work = target / f"{name}.parts"
    work.mkdir()
    objects = []
    for source in _SOURCES.get(name, ()):
        objects.append(work / f"{source}.o")
        _output("g++", "-std=c++17", "-O2", "-Wall", "-Werror", "-fPIC", f"-I{include}", "-c", SOURCES / source, "-o", objects[-1])
    defined = {line.split()[-1] for one in objects for line in _output("nm", "--defined-only", one).splitlines() if line.split()}
    missing = "".join([_MISSING.format(name=function) for function in sorted(set(wanted) - defined)])
    (work / "missing.cpp").write_text(f'#include <cstdio>\nextern "C" {{\n{missing}}}\n')
    # Its functions bear the version that the real library's do.
    (work / "versions").write_text(f"{library} {{ global: *; }};\n")
    linked = [links[other] for other in ("libcudart",) if other in links and other != name]
    flags = ("-shared", "-fPIC", f"-Wl,-soname,{library}", f"-Wl,--version-script={work / 'versions'}", "-Wl,-rpath,$ORIGIN")
    _output("g++", *flags, *objects, work / "missing.cpp", *linked, "-o", target / library)
    shutil.rmtree(work)


def build(folder: Path) -> None:
    """Make all libraries. Raises NotBuilt."""
    providers = providers_folder()
    made: dict[str, Path] = {}
    for provider, target in ((providers / CUDA, folder / "lib"), (providers / TENSORRT, folder / "tensorrt")):
        shutil.rmtree(target, ignore_errors=True)
        if not provider.exists():
            continue
        target.mkdir(parents=True)
        libraries = [library for library in _libraries(provider) if library.partition(".")[0] not in made]
        wanted = _wanted(provider)
        # The others are linked to it.
        for library in sorted(libraries, key=lambda library: not library.startswith("libcudart.")):
            name = library.partition(".")[0]
            if name == "libcudart":
                include = fetch_headers(folder, library.rpartition(".")[2])
            _compile(library, target, wanted[name], include, made)
            made[name] = target / library


def main() -> int:
    """The command."""
    if len(sys.argv) != 2 or os.path.basename(sys.argv[1]).startswith("-"):
        print("usage: python -m tests.standins.cuda.build FOLDER", file=sys.stderr)
        return 2
    try:
        build(Path(sys.argv[1]))
    except NotBuilt as reason:
        print(f"no stand-in for CUDA's libraries: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
