"""The wheel: built from the tree, installed where nothing of the tree is in sight, every module imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from .tree import ROOMS, ROOT, lines, product_files

GPU_ONLY = {"cupy", "cupy_backends", "cuda", "pynvml", "tensorrt"}

IMPORT_ALL = """
import importlib, sys
for name in sys.argv[2:]:
    try:
        module = importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name.split(".")[0] in sys.argv[1].split(","):
            print("without its GPU library:", name)
        else:
            print(name, "fails:", repr(error))
    else:
        print(module.__file__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build in the tree would leave files there, and find those of an earlier one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    # what is not the product and yet lies beside it in a checkout
    for room in ("configs", "scripts", "tests"):
        (source / room).mkdir()
        (source / room / "__init__.py").touch()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_packages_of_setup_cfg_are_those_of_the_tree() -> None:
    folders = {path.parent for path in product_files()}
    assert lines("options", "packages") == sorted(".".join(("tensorfarm", *folder.parts)) for folder in folders)
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_the_root_is_no_package() -> None:
    assert not (ROOT / "__init__.py").exists()


def test_wheel_holds_the_product_and_nothing_else(members: list[str]) -> None:
    tops = {name.split("/")[0] for name in members}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tensorfarm"}
    assert len(tops) == 2
    modules = {f"tensorfarm/{path.as_posix()}" for path in product_files()}
    marks = {f"tensorfarm/{room}/py.typed" for room in ROOMS}
    assert {name for name in members if name.startswith("tensorfarm/")} == modules | marks


def test_wheel_carries_its_licence_and_command(wheel: Path, members: list[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (name for name in members if name.endswith("entry_points.txt"))
        (metadata,) = (name for name in members if name.endswith("METADATA"))
        (licence,) = (name for name in members if name.endswith("LICENSE"))
        assert "tensorfarm = tensorfarm.server.__main__:main" in archive.read(entry_points).decode()
        assert "Apache License" in archive.read(licence).decode()
        text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text


def test_every_module_imports_from_the_installed_wheel(wheel: Path, members: list[str], tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies come from this environment. A path in a .pth file is appended and its own .pth files are not read, so
    # that an editable tensorfarm here stays out of sight.
    paths = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in paths))

    names = [name.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".") for name in members if name.endswith(".py")]
    said = run(python, "-I", "-c", IMPORT_ALL, ",".join(GPU_ONLY), *names, cwd=tmp_path).splitlines()
    assert len(said) == len(names) > 0
    strangers = [line for line in said if not line.startswith((str(site), "without its GPU library:"))]
    assert not strangers, "\n".join(strangers)
    assert (home / "bin" / "tensorfarm").exists()
