"""Archives: what is good is unpacked as it was, what is bad is refused before it does harm."""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
from pathlib import Path

import pytest

from tensorfarm.server.farm import archive as archive_module
from tensorfarm.server.farm.archive import ArchiveError, unpack

from .archives import member, written

DIR, SYM, LNK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def unpacked(archive: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    unpack(archive, folder, lambda: False)
    return folder


def refused(archive: Path, tmp_path: Path, text: str) -> None:
    outside = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(ArchiveError, match=re.escape(text)):
        unpacked(archive, tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "into")) == outside


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_files_folders_and_links(tmp_path: Path, mode: str) -> None:
    archive = written(
        tmp_path / "a",
        member("./", DIR), member("lib", DIR), member("lib/", DIR), member("./bin/deep/python3", size=3_000_000, mode=0o6777, mtime=1_600_000_000.5),
        member("bin/python", SYM, "deep/python3"), member("lib/up", SYM, "../bin/./deep/../python"), member("lib64", SYM, "lib"), member("early", SYM, "late/x"),
        member("late/x", size=1), member("hard", LNK, "./bin/deep/python3"), member("lib/dangling", SYM, "nothing/here"), member("nö " + "n" * 200, size=2),
        mode=mode,
    )  # fmt: skip
    folder = unpacked(archive, tmp_path)
    program = folder / "bin" / "deep" / "python3"
    assert program.read_bytes() == b"x" * 3_000_000
    assert program.stat().st_mode & 0o7777 == 0o755 & ~_umask() and program.stat().st_mtime == 1_600_000_000
    assert (folder / "late" / "x").stat().st_mode & 0o7777 == 0o644 & ~_umask()
    for link in ("bin/python", "lib/up", "hard"):
        assert (folder / link).samefile(program)
    assert os.readlink(folder / "bin/python") == "deep/python3" and (folder / "early").read_text() == "x" and (folder / "lib64").is_dir()
    assert (folder / ("nö " + "n" * 200)).read_text() == "xx" and os.readlink(folder / "lib" / "dangling") == "nothing/here"


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize(("members", "text"), [
    ([member("/etc/x", size=1)], "leads outside"),
    ([member("../x", size=1)], "leads outside"),
    ([member("a/../../x", size=1)], "leads outside"),
    ([member("a/../x", size=1)], "leads outside"),
    ([member("n" * 1025)], "too long"),
    ([member("", size=1)], "without a name"),
    ([member("l", SYM, "/etc/passwd")], "the link 'l' leads outside"),
    ([member("l", SYM, "../x")], "the link 'l' leads outside"),
    ([member("a/l", SYM, "../../x")], "the link 'a/l' leads outside"),
    ([member("a/b/l", SYM, "e/../../.."), member("r", DIR), member("a/b/e", SYM, "../../r")], "the link 'a/b/l' leads outside"),
    ([member("d", SYM, "."), member("d/x", size=1)], "'d' is a link and a folder"),
    ([member("d", SYM, "."), member("d/e/x", size=1)], "'d' is a link and a folder"),
    ([member("d", SYM, "."), member("d", DIR)], "'d' is a link and a folder"),
    ([member("d", DIR), member("d", SYM, ".")], "it has 'd' twice"),
    ([member("f", size=1), member("f", size=2)], "it has 'f' twice"),
    ([member("f", SYM, "g"), member("f", size=2)], "it has 'f' twice"),
    ([member("f", size=1), member("f/g", size=2)], "it has 'f/g' twice"),
    ([member("h", LNK, "/etc/passwd")], "leads outside"),
    ([member("h", LNK, "../x")], "leads outside"),
    ([member("h", LNK, "none")], "leads to no file"),
    ([member("l", SYM, "x"), member("h", LNK, "l")], "leads to no file"),
    ([member("d/x", size=1), member("h", LNK, "d")], "leads to no file"),
    ([member("l", SYM, "."), member("h", LNK, "l/x")], "leads to no file"),
    ([member("dev", tarfile.CHRTYPE)], "'dev' is neither a file nor a folder nor a link"),
    ([member("dev", tarfile.BLKTYPE)], "'dev' is neither a file nor a folder nor a link"),
    ([member("pipe", tarfile.FIFOTYPE)], "'pipe' is neither a file nor a folder nor a link"),
])  # fmt: skip
def test_members_that_do_harm(tmp_path: Path, members: list[tarfile.TarInfo], text: str) -> None:
    refused(written(tmp_path / "a", *members), tmp_path, text)


def test_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_BYTE_SIZE", 1 << 20)
    refused(written(tmp_path / "a", member("a", size=600_000), member("b", size=600_000)), tmp_path, "it holds more than 1048576 bytes")


def test_a_large_file_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_BYTE_SIZE", 1 << 20)
    refused(written(tmp_path / "a", member("a", size=2 << 20)), tmp_path, "it holds more than 1048576 bytes")
    assert list((tmp_path / "into").iterdir()) == []


def test_sparse_files_count_as_what_they_become(tmp_path: Path) -> None:
    head = tarfile.TarInfo("sparse")
    head.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse", "GNU.sparse.realsize": str(1 << 50)}
    head.size = 512
    with tarfile.open(tmp_path / "a", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(head, io.BytesIO(b"0\n".ljust(512, b"\0")))
    refused(tmp_path / "a", tmp_path, "it holds more than")


def test_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_MEMBERS", 3)
    refused(written(tmp_path / "a", *[member(str(number)) for number in range(4)]), tmp_path, "it has more than 3 members")


def test_a_header_that_fills_the_memory(tmp_path: Path) -> None:
    refused(
        written(tmp_path / "a", member("a"), headers={"comment": "x" * (5 << 20)}), tmp_path, "it has a header of more than 4194304 bytes"
    )


def test_a_list_of_holes_that_fills_the_memory(tmp_path: Path) -> None:
    """A sparse file's list lies before its content, and is read block by block."""
    holes = b"3000000\n" + b"0\n" * 6_000_000
    head = member("sparse", size=len(holes))
    head.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse", "GNU.sparse.realsize": "0"}
    with tarfile.open(tmp_path / "a", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(head, io.BytesIO(holes))
    refused(tmp_path / "a", tmp_path, "it has a header of more than 4194304 bytes")


def test_much_about_all_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a", "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 65_536}) as tar:
        tar.addfile(member("a"))
    refused(tmp_path / "a", tmp_path, "too long a text about all")


def with_pax(kind: bytes = tarfile.REGTYPE, **texts: str) -> bytes:
    """An archive of one member whose header says this."""
    head = member("f", kind, "g" if kind == SYM else "")
    head.pax_headers = {name.replace("__", "."): text for name, text in texts.items()}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(head)
    return content.getvalue()


@pytest.mark.parametrize("content", [
    with_pax(SYM, linkpath="a\0b"),
    with_pax(GNU__sparse__map="1,x"),
    with_pax(GNU__sparse__major="1", GNU__sparse__minor="0"),
    with_pax(mtime="inf"),
    member("n" * 200).tobuf(tarfile.GNU_FORMAT)[:1024] * 2000 + bytes(1024),
    b"".join([member(f"l{number}", SYM, f"l{number + 1}").tobuf() for number in range(2000)]) + bytes(1024),
], ids=["zero in a link", "list of holes", "no list of holes", "time", "headers of headers", "links of links"])  # fmt: skip
def test_headers_without_sense(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    refused(tmp_path / "a", tmp_path, "it is damaged, or no tar archive")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x1f\x8b", bytes(100), b"x" * 2000, gzip.compress(b"text"), gzip.compress(b"x" * 5000)[:-9]], ids=range(7)
)
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    refused(tmp_path / "a", tmp_path, "it is damaged, or no tar archive")


def test_it_can_be_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "into"
    folder.mkdir()
    archive = written(tmp_path / "a", member("a", size=10))
    with pytest.raises(ArchiveError, match="the server is stopping"):
        unpack(archive, folder, lambda: True)
