"""The server's folder of sockets: private, gone at the end, swept where its server was killed."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorfarm.server.farm.runtime_directory import RuntimeDirectory


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder of its own for the sockets."""
    with tempfile.TemporaryDirectory(prefix="tf-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def stale(base: Path, name: str = "tensorfarm-stale") -> Path:
    """What a killed server leaves: its lock is there, and nobody holds it."""
    folder = base / name
    folder.mkdir(mode=0o700)
    (folder / "lock").touch()
    (folder / "worker-1").touch()
    return folder


def test_it_is_private_and_goes(base: Path) -> None:
    directory = RuntimeDirectory()
    assert directory.path.parent == base and directory.path.name.startswith("tensorfarm-")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert directory.endpoint("worker-12") == f"ipc://{directory.path}/worker-12"
    (directory.path / "worker-12").touch()
    directory.close()
    assert list(base.iterdir()) == []
    directory.close()


def test_what_dead_servers_left_is_swept_and_what_lives_is_not(base: Path) -> None:
    living = RuntimeDirectory()
    (living.path / "worker-1").touch()
    left = [stale(base, f"tensorfarm-{number}") for number in range(3)]
    foreign = base / "tensorfarm-of-somebody"
    foreign.mkdir()
    following = RuntimeDirectory()
    assert not any(folder.exists() for folder in left)
    assert (living.path / "worker-1").exists() and following.path.exists()
    assert foreign.exists(), "a folder without a lock is none of ours"
    living.close()
    assert following.path.exists()
    following.close()


def test_a_killed_server_is_no_longer_alive(base: Path) -> None:
    program = "import time; from tensorfarm.server.farm.runtime_directory import RuntimeDirectory as R; d = R(); print(d.path, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        RuntimeDirectory().close()
        assert path.exists()
        process.kill()
        process.wait()
    assert path.exists()
    RuntimeDirectory().close()
    assert not path.exists()


def test_links_are_not_followed(base: Path, tmp_path: Path) -> None:
    target = stale(tmp_path)
    (base / "tensorfarm-link").symlink_to(target)
    inner = base / "tensorfarm-inner"
    inner.mkdir()
    (inner / "lock").symlink_to(target / "lock")
    RuntimeDirectory().close()
    assert (target / "worker-1").exists() and inner.exists()


def test_the_lock_is_held_before_others_can_see_it(base: Path) -> None:
    directory = RuntimeDirectory()
    lock = os.open(directory.path / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)
    directory.close()


def test_a_path_too_long_for_a_socket_is_passed_over(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = base / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    directory = RuntimeDirectory()
    assert directory.path.parent == base
    directory.close()
