"""Repositories in the cloud: what of them is seen, copied, shared between copies, and refused. In fsspec's own memory."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fsspec")

from fsspec.implementations.memory import MemoryFileSystem

from tensorfarm.server.farm.private_directory import sweep
from tensorfarm.server.repository.autofill import autofill
from tensorfarm.server.repository.cloud import Cloud
from tensorfarm.server.repository.cloud_address import Address
from tensorfarm.server.repository.cloud_copy import version_of
from tensorfarm.server.repository.cloud_credentials import Credentials
from tensorfarm.server.repository.cloud_store import MAX_FILES, Mark, mark_of, merged
from tensorfarm.server.repository.layout import present_versions
from tensorfarm.workers.contract.configuration import ModelConfig
from tensorfarm.workers.contract.status import Code, StatusError

from ..servers import wait_until
from .stores import loaded, tree

MODEL = {
    "config.pbtxt": b'name: "m"',
    "labels.txt": b"cat\ndog",
    "configs/other.pbtxt": b"",
    "warmup/zeros": b"0",
    "1/model.onnx": b"first",
    "2/model.onnx": b"second",
    "2/weights/part.bin": b"weights",
}


def put(files: dict[str, bytes], root: str = "/bucket/repository/m") -> None:
    MemoryFileSystem().pipe({f"{root}/{name}": content for name, content in files.items()})


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


class Setting:
    """A repository in memory, and what it said and slept."""

    def __init__(self, base: Path) -> None:
        self.said: list[str] = []
        self.slept: list[float] = []
        self.base = base
        self.cloud = Cloud("memory://bucket/repository", environment={}, progress=self.said.append, sleep=self.slept.append)
        self.cloud._base = base


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    made = Setting(tmp_path)
    yield made
    made.cloud.close()
    assert list(tmp_path.iterdir()) == []


def failing(monkeypatch: pytest.MonkeyPatch, name: str, errors: list[Exception]) -> None:
    """Have a method of the file system raise these first."""
    real = getattr(MemoryFileSystem, name)

    def method(*args: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return real(*args, **options)

    monkeypatch.setattr(MemoryFileSystem, name, method)


def downloads(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None] = lambda path: None) -> list[str]:
    """The files that are downloaded from now on; ``before`` is called with each."""
    seen: list[str] = []
    real = MemoryFileSystem.get_file

    def get_file(self: MemoryFileSystem, path: str, to: str, **options: Any) -> None:
        before(path)
        seen.append(path.removeprefix("/bucket/repository/"))
        real(self, path, to, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    return seen


def test_models_are_the_visible_folders(setting: Setting) -> None:
    put({"b/1/x": b"", "a/1/x": b"", ".git/config": b"", "file": b""}, "/bucket/repository")
    setting.cloud.check()
    assert setting.cloud.model_names() == ["a", "b"]


def test_a_folder_that_is_not_there_is_no_repository(setting: Setting) -> None:
    with pytest.raises(StatusError) as caught:
        setting.cloud.check()
    assert caught.value.message == "failed to list memory://bucket/repository: there is no such file or folder"


def test_a_model_with_an_impossible_name_does_not_hide_the_others(setting: Setting) -> None:
    put({"m/1/x": b"", f"{'n' * 300}/1/x": b""}, "/bucket/repository")
    assert setting.cloud.model_names() == ["m"]
    assert len(setting.said) == 1 and "nnn" in setting.said[0]


def test_stamps_name_every_file_and_folder(setting: Setting) -> None:
    put({**MODEL, ".hidden": b"h", "3/.keep": b""})
    stamps = setting.cloud.stamps("m")
    assert stamps is not None
    assert {name for name, mark in stamps.items() if mark is None} == {"1/", "2/", "2/weights/", "3/", "configs/", "warmup/"}
    sizes = {name: mark.byte_size for name, mark in stamps.items() if mark is not None}
    assert sizes == {name: len(content) for name, content in {**MODEL, ".hidden": b"h", "3/.keep": b""}.items()}


@pytest.mark.parametrize("name", ["none", "", ".", "..", "../repository/m", "m/1", "m\0", ".hidden", "m" * 256, "\udc80"])
def test_what_is_no_model(setting: Setting, name: str) -> None:
    put(MODEL)
    assert setting.cloud.stamps(name) is None


def test_stamps_change_with_a_file_and_only_with_it(setting: Setting) -> None:
    put(MODEL)
    before = setting.cloud.stamps("m")
    assert before == setting.cloud.stamps("m")
    put({"1/model.onnx": b"FIRST"})
    after = setting.cloud.stamps("m")
    assert before and after and {name for name in before if before[name] != after[name]} == {"1/model.onnx"}


def test_a_mark_takes_the_tag_before_the_time() -> None:
    assert mark_of({"size": 3, "ETag": '"e"', "LastModified": 5}) == Mark(3, '"e"')
    assert mark_of({"size": 3, "LastModified": 5}) == Mark(3, "5")
    assert mark_of({"size": 3, "ETag": None}) == Mark(3, "")


def test_a_copy_has_names_in_versions_and_contents_elsewhere(setting: Setting) -> None:
    put(MODEL)
    stamps = setting.cloud.stamps("m")
    assert stamps is not None
    copy = setting.cloud.copy("m", stamps)
    assert copy.directory.name == "m"
    files = {name: content for name, content in tree(copy.directory).items() if content is not None}
    assert files == {name: b"" if version_of(name) else content for name, content in MODEL.items()}
    assert present_versions(copy.directory).numbers == (1, 2)
    config = ModelConfig()
    autofill(config, copy.directory, "m")
    assert config.backend == "onnxruntime"


def test_filling_completes_versions_and_removes_the_others(setting: Setting) -> None:
    put(MODEL)
    copy = loaded(setting.cloud, "m", 2)
    expected = {name: content for name, content in MODEL.items() if not name.startswith("1/")}
    assert {name: content for name, content in tree(copy.directory).items() if content is not None} == expected
    assert present_versions(copy.directory).numbers == (2,)


def test_filling_again_downloads_only_what_is_missing(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put(MODEL)
    copy = loaded(setting.cloud, "m", 2)
    seen = downloads(monkeypatch)
    copy.fill([1, 2])
    assert seen == ["m/1/model.onnx"]
    assert {name: content for name, content in tree(copy.directory).items() if content is not None} == MODEL


def test_an_empty_version_stays(setting: Setting) -> None:
    put({"config.pbtxt": b""})
    MemoryFileSystem().mkdir("/bucket/repository/m/1")
    assert tree(loaded(setting.cloud, "m", 1).directory) == {"config.pbtxt": b"", "1/": None}


def test_copies_are_private(setting: Setting) -> None:
    put(MODEL)
    copy = loaded(setting.cloud, "m", 1, 2)
    (private,) = setting.base.iterdir()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    for path in copy.directory.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o400)


def test_what_has_not_changed_is_linked_from_the_newest_copy(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put(MODEL)
    old = loaded(setting.cloud, "m", 2)
    put({"2/model.onnx": b"SECOND", "config.pbtxt": b"new"})
    seen = downloads(monkeypatch)
    new = loaded(setting.cloud, "m", 2)
    assert sorted(seen) == ["m/2/model.onnx", "m/config.pbtxt"]
    assert (new.directory / "2/weights/part.bin").samefile(old.directory / "2/weights/part.bin")
    # the generation that still serves has what it had
    assert (old.directory / "2/model.onnx").read_bytes() == b"second" and (old.directory / "config.pbtxt").read_bytes() == MODEL[
        "config.pbtxt"
    ]
    assert (new.directory / "2/model.onnx").read_bytes() == b"SECOND"
    old.release()
    assert not old.directory.exists() and (new.directory / "2/weights/part.bin").read_bytes() == b"weights"
    seen.clear()
    assert loaded(setting.cloud, "m", 2).directory != new.directory and seen == []


def test_a_file_that_a_model_wrote_to_is_not_linked(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put(MODEL)
    old = loaded(setting.cloud, "m", 1)
    (old.directory / "1/model.onnx").chmod(0o600)
    (old.directory / "1/model.onnx").write_bytes(b"FIRST")
    os.utime(old.directory / "1/model.onnx", ns=(1, 1))
    seen = downloads(monkeypatch)
    assert (loaded(setting.cloud, "m", 1).directory / "1/model.onnx").read_bytes() == b"first"
    assert seen == ["m/1/model.onnx"]


def test_files_without_a_tag_are_never_linked(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put({"config.pbtxt": b"x", "1/model.onnx": b"y"})
    monkeypatch.setattr("tensorfarm.server.repository.cloud_store.mark_of", lambda info: Mark(info["size"], ""))
    loaded(setting.cloud, "m", 1)
    seen = downloads(monkeypatch)
    loaded(setting.cloud, "m", 1)
    assert sorted(seen) == ["m/1/model.onnx", "m/config.pbtxt"]


def test_models_of_two_repositories_do_not_meet(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> None:
    put(MODEL)
    put({"config.pbtxt": b"other"}, "/bucket/second/m")
    other = Cloud("memory://bucket/second", environment={})
    try:
        assert tree(loaded(other, "m").directory) == {"config.pbtxt": b"other"}
    finally:
        other.close()
        other.close()


def test_a_released_copy_leaves_nothing(setting: Setting) -> None:
    put(MODEL)
    copy = loaded(setting.cloud, "m", 1)
    (private,) = setting.base.iterdir()
    copy.release()
    copy.release()
    assert [path.name for path in private.iterdir()] == ["lock"]


def test_a_changed_file_is_not_taken(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put(MODEL)
    stamps = setting.cloud.stamps("m")
    assert stamps is not None
    copy = setting.cloud.copy("m", stamps)
    put({"1/model.onnx": b"FIRST"})
    with pytest.raises(StatusError) as caught:
        copy.fill([1])
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message == "'m/1/model.onnx' of memory://bucket/repository changed while it was downloaded"
    copy.release()
    assert (loaded(setting.cloud, "m", 1).directory / "1/model.onnx").read_bytes() == b"FIRST"


def test_a_file_of_another_size_is_not_taken(setting: Setting) -> None:
    for content in (b"longer than it was", b"x"):
        put(MODEL)
        stamps = setting.cloud.stamps("m")
        assert stamps is not None
        put({"config.pbtxt": content})
        with pytest.raises(StatusError, match="^'m/config.pbtxt' of memory://bucket/repository has another size than its listing says$"):
            setting.cloud.copy("m", stamps)
    (private,) = setting.base.iterdir()
    assert [path.name for path in private.iterdir()] == ["lock"]


def test_a_file_that_is_gone_fails_the_copy(setting: Setting) -> None:
    put(MODEL)
    stamps = setting.cloud.stamps("m")
    assert stamps is not None
    MemoryFileSystem().rm("/bucket/repository/m/config.pbtxt")
    with pytest.raises(StatusError) as caught:
        setting.cloud.copy("m", stamps)
    expected = "failed to download 'm/config.pbtxt' of memory://bucket/repository: there is no such file or folder"
    assert (caught.value.code, caught.value.message) == (Code.INTERNAL, expected)
    assert setting.slept == []


def test_what_fails_for_a_moment_is_tried_again(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put({"config.pbtxt": b"x"})
    failing(monkeypatch, "ls", [ConnectionResetError("reset"), TimeoutError()])
    failing(monkeypatch, "get_file", [ConnectionResetError("reset")])
    assert setting.cloud.model_names() == ["m"]
    assert setting.slept == [0.5, 2.0]
    assert tree(loaded(setting.cloud, "m").directory) == {"config.pbtxt": b"x"}
    assert setting.slept == [0.5, 2.0, 0.5]


def test_after_three_attempts_it_is_given_up(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "ls", [ConnectionResetError("reset")] * 3)
    with pytest.raises(StatusError) as caught:
        setting.cloud.model_names()
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message == "failed to list memory://bucket/repository: ConnectionResetError: reset"
    assert setting.slept == [0.5, 2.0]


def test_what_will_not_get_better_is_tried_once(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "ls", [PermissionError(13, "Permission denied"), KeyError("odd")])
    for reason in ("PermissionError: Permission denied", "KeyError: 'odd'"):
        with pytest.raises(StatusError) as caught:
            setting.cloud.model_names()
        assert (caught.value.code, caught.value.message) == (Code.INTERNAL, f"failed to list memory://bucket/repository: {reason}")
    assert setting.slept == []


@pytest.mark.parametrize("name", ["../x", "1/../../x", "a//b", "/etc/passwd", "./x", "1/.", "x\0y", "y" * 256, "\udc80"])
def test_names_that_lead_elsewhere_are_refused(setting: Setting, name: str) -> None:
    MemoryFileSystem().pipe({"/bucket/repository/m/config.pbtxt": b""})
    store = MemoryFileSystem.store
    store[f"/bucket/repository/m/{name}"] = store["/bucket/repository/m/config.pbtxt"]
    with pytest.raises(StatusError) as caught:
        setting.cloud.stamps("m")
    assert caught.value.message == f"the name {ascii(name)} cannot be given to a file"
    with pytest.raises(StatusError):
        setting.cloud.copy("m", {name: Mark(0, "x")})
    assert not setting.base.joinpath("x").exists()


def test_markers_of_consoles_are_folders() -> None:
    empty, full = Mark(0, "e"), Mark(1, "f")
    assert merged([("1/", empty), ("", empty), ("config.pbtxt", empty)]) == {"1/": None, "config.pbtxt": empty}
    assert merged([("2/a", full), ("2", empty), ("3", empty)]) == {"2/a": full, "2/": None, "3/": None}
    with pytest.raises(StatusError, match="^'2' is both a file and a folder$"):
        merged([("2", full), ("2/a", full)])


def test_a_model_has_a_bound() -> None:
    with pytest.raises(StatusError, match=f"^more than {MAX_FILES} files$"):
        merged((f"f{number}", Mark(0, "")) for number in range(MAX_FILES + 1))


def test_only_plain_numbers_are_versions() -> None:
    names = ["1/x", "0/", "12/a/b", "01/x", "2-old/x", "configs/x", "+1/x", "1", "٣/x", f"{10**19}/x"]
    assert [version_of(name) for name in names] == [1, 0, 12, None, None, None, None, None, None, None]


def test_eight_files_at_a_time(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put({f"1/{number}": b"x" for number in range(20)})
    # The first eight wait for each other: fewer threads would not come so far, more would show in the count.
    together = threading.Barrier(8)
    lock = threading.Lock()
    count = [0, 0]

    def before(path: str) -> None:
        with lock:
            count[0] += 1
            count[1] = max(count)
            first = len(seen) < 8 and count[0] <= 8
        if first and not together.broken and path.rpartition("/")[2] in names:
            together.wait(20)
        with lock:
            count[0] -= 1

    stamps = setting.cloud.stamps("m")
    assert stamps is not None
    names = {name.removeprefix("1/") for name in [name for name, mark in stamps.items() if mark is not None][:8]}
    seen = downloads(monkeypatch, before)
    copy = setting.cloud.copy("m", stamps)
    copy.fill([1])
    assert count[1] == 8 and len(seen) == 20


def test_the_first_failure_ends_the_others(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put({f"1/{number:02}": b"x" for number in range(40)})

    def before(path: str) -> None:
        if path.endswith("/00"):
            raise PermissionError(13, "Permission denied")

    copy = setting.cloud.copy("m", setting.cloud.stamps("m") or {})
    downloads(monkeypatch, before)
    with pytest.raises(
        StatusError, match="^failed to download 'm/1/00' of memory://bucket/repository: PermissionError: Permission denied$"
    ):
        copy.fill([1])


def test_no_room_is_noticed_before_anything_is_downloaded(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put({"config.pbtxt": b"x" * 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=99))
    seen = downloads(monkeypatch)
    with pytest.raises(StatusError, match="^no room for a copy of model 'm': 100 bytes are needed, 99 are free$"):
        loaded(setting.cloud, "m")
    assert seen == []


def test_closing_ends_what_is_being_downloaded(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put(MODEL)
    copy = setting.cloud.copy("m", setting.cloud.stamps("m") or {})
    begun = threading.Event()

    def before(path: str) -> None:
        begun.set()
        wait_until(lambda: setting.cloud._store.traffic.stopped, "the repository is closed")

    downloads(monkeypatch, before)
    with ThreadPoolExecutor(1) as thread:
        filling = thread.submit(copy.fill, [1, 2])
        assert begun.wait(20)
        setting.cloud.close()
        # nothing is written any more once it is closed
        assert list(setting.base.iterdir()) == []
        failed = filling.exception(20)
    assert isinstance(failed, StatusError) and failed.message == "the download was broken off"
    with pytest.raises(StatusError, match="^the model repository is closed$"):
        setting.cloud.copy("m", {})
    with pytest.raises(StatusError, match="^the download was broken off$"):
        copy.fill([1])


def test_copies_of_a_killed_server_are_swept(setting: Setting) -> None:
    put(MODEL)
    loaded(setting.cloud, "m", 1)
    (private,) = setting.base.iterdir()
    sweep(setting.base)
    assert private.exists()
    left = setting.base / "tensorfarm-left"
    (left / "0" / "m").mkdir(parents=True)
    (left / "lock").touch()
    other = Cloud("memory://bucket/repository", environment={})
    other._base = setting.base
    loaded(other, "m", 1)
    assert not left.exists()
    other.close()


def test_refused_credentials_are_looked_up_again(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    put(MODEL)
    looked_up: list[str] = []

    def find(address: Address, environment: object) -> Credentials:
        looked_up.append(address.name)
        return Credentials()

    monkeypatch.setattr("tensorfarm.server.repository.cloud_store.find_credentials", find)
    failing(monkeypatch, "ls", [PermissionError(13, "Permission denied")])
    with pytest.raises(StatusError):
        setting.cloud.model_names()
    assert setting.cloud.model_names() == setting.cloud.model_names() == ["m"]
    assert len(looked_up) == 2


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("s3://b", "TRITON_AWS_MOUNT_DIRECTORY"),
        ("gs://b", "TRITON_GCS_MOUNT_DIRECTORY"),
        ("as://a/c", "TRITON_AZURE_MOUNT_DIRECTORY"),
        ("abfs://c", "TRITON_AZURE_MOUNT_DIRECTORY"),
    ],
)
def test_where_copies_go(name: str, variable: str, tmp_path: Path) -> None:
    assert Cloud(name, environment={variable: str(tmp_path)})._base == tmp_path
    assert Cloud(name, environment={})._base == Path(tempfile.gettempdir())


def test_a_missing_package_says_what_to_install(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(StatusError) as caught:
        Cloud("s3://bucket/path", environment={}).check()
    assert caught.value.message == (
        "s3:// file-system not supported: the package s3fs is missing or broken. To enable, run: pip install 'tensorfarm[cloud]'"
    )


def test_fsspec_is_imported_only_for_a_repository_that_needs_it() -> None:
    script = "import sys; from tensorfarm.server.repository.cloud import Cloud; Cloud('s3://b'); print({'fsspec', 's3fs', 'aiohttp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert (done.stdout, done.stderr) == ("set()\n", "")
