"""Load requests that mean harm: names, paths of files and inside configurations, links, archives, sizes."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..generations import BODY, generation_of, python_source, write_generation
from ..servers import Server, tensorfarm, wait_until
from ..wire import Connection, compact, request_bytes

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one model that is loaded, which is to be there after all."""
    root = tmp_path_factory.mktemp("harm")
    write_generation(root / "models", "good", 1, "python")
    with tensorfarm(root / "models", "--model-control-mode=explicit", "--load-model=good", folder=root / "run") as running:
        yield running
        assert generation_of(running.ask("POST", "/v2/models/good/infer", BODY)) == 1


@pytest.fixture(autouse=True)
def nothing_written(server: Server) -> Iterator[None]:
    """Whatever a request says: no file comes or changes outside the server's own temporary folder, and there none stays."""
    before = _files(server)
    yield
    wait_until(lambda: _files(server) == before, "the files to be as they were")
    assert server.live()


def _files(server: Server) -> dict[str, tuple[int, int]]:
    root = server.folder.parent
    paths = [path for path in _below(root) if path.parent != server.folder and "__pycache__" not in path.parts]
    sent = [path for path in _below(server.temporary) if path.name != "lock" and "model" in path.parts]
    found = {}
    for path in (*paths, *sent):
        with contextlib.suppress(FileNotFoundError):
            found[str(path)] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def _below(root: Path) -> list[Path]:
    """The files below a folder, from which the server may be removing some."""
    return [Path(folder) / name for folder, _, names in os.walk(root) for name in names]


def _send(server: Server, name: str, parameters: dict[str, Any] | None = None, verb: str = "load") -> tuple[int, str]:
    """Send a load as it is, without any encoding of the name."""
    body = b"" if parameters is None else compact({"parameters": parameters})
    with Connection(server.http_port) as connection:
        connection.send(request_bytes("POST", f"/v2/repository/models/{name}/{verb}", body))
        reply = connection.receive()
    return reply.status, reply.body.decode()


def _config(name: str, **more: Any) -> str:
    tensors = {
        "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [1]}],
        "output": [{"name": "Y", "data_type": "TYPE_INT32", "dims": [1]}],
    }
    return json.dumps({"name": name, "backend": "python", **tensors, **more})


def _coded(content: bytes) -> str:
    return base64.b64encode(content).decode()


MARK = "made-by-a-name"
NAMES = (
    *("../etc", "a/../b", "/etc/passwd", "good/", "..", ".", "...", "..my_model", "%2e%2e", "..%2F..%2Fetc", "%09", "%00", "%0a", "-c"),
    *(f"x;touch%20{MARK}", f"x;touch${{IFS}}{MARK}", f"$(touch${{IFS}}{MARK})", f"`touch${{IFS}}{MARK}`", "x" * 300, "x" * 4096),
)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:30])
def test_names(name: str, server: Server) -> None:
    """None is a model's; with a configuration and files none becomes one outside the server's temporary folder either."""
    code = _coded(python_source(1).encode())
    for parameters in (None, {"config": _config(name)}):
        status, body = _send(server, name, parameters)
        assert 400 <= status <= 500, (name, status, body[:200])
        assert "root:" not in body and "passwd:" not in body
    status, body = _send(server, name, {"config": _config(name), "file:1/model.py": code})
    assert 400 <= status <= 500 or (status == 200 and not {"/", ".."} & {name, *name}), (name, status, body[:200])
    assert _send(server, name, verb="unload")[0] in (200, 400, 404)
    assert not list(server.folder.parent.rglob(f"*{MARK}*")) and not (Path.cwd() / MARK).exists()


def test_name_with_a_command_is_a_name(server: Server) -> None:
    """A model may be called so; nobody carries it out."""
    name = f"x;touch${{IFS}}{MARK}"
    document = {
        "name": name,
        "backend": "python",
        "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [1]}],
        "output": [{"name": f"OUT{at}", "data_type": "TYPE_INT32", "dims": [2]} for at in range(4)]
        + [{"name": "TEXT", "data_type": "TYPE_STRING", "dims": [1]}],
    }
    parameters = {"config": json.dumps(document), "file:1/model.py": _coded(python_source(1).encode())}
    assert _send(server, name, parameters)[0] == 200, server.log[-2000:]
    with Connection(server.http_port) as connection:
        connection.send(request_bytes("POST", f"/v2/models/{name}/infer", BODY))
        assert generation_of(connection.receive()) == 1
    assert _send(server, name, verb="unload")[0] == 200
    assert not list(server.folder.parent.rglob(f"*{MARK}*")) and not (Path.cwd() / MARK).exists()
    _wait_no_files(server)


def _wait_no_files(server: Server) -> None:
    wait_until(lambda: not [path for path in _below(server.temporary) if path.name == "model.py"], "the files that were sent to be removed")


PATHS = ("../../root/x", "../x", "1/../../x", "..", "/etc/x", "//etc/x", "", ".", "1/", "a\0b", "1/" + "x" * 256, "x/" * 3000 + "y")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: repr(path[:30]))
def test_paths_of_files(path: str, server: Server) -> None:
    status, body = _send(server, "sent", {"config": _config("sent"), f"file:{path}": "AAAA", "file:1/model.py": "AAAA"})
    assert 400 <= status <= 500, body
    assert str(server.temporary) not in body


def test_file_and_folder_of_one_name(server: Server) -> None:
    status, body = _send(server, "sent", {"config": _config("sent"), "file:1": "AAAA", "file:1/model.py": "AAAA"})
    assert 400 <= status <= 500, body


def test_links_of_the_repository_are_not_written_through(server: Server, tmp_path: Path) -> None:
    """Files of a request never go to the repository's folder of that model."""
    folder = server.folder.parent / "models" / "linked"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    _send(server, "linked", {"config": _config("linked"), "file:out/x": "AAAA", "file:1/model.py": "AAAA"})
    assert not list(tmp_path.iterdir())
    (folder / "out").unlink()
    folder.rmdir()


SECRET = "the-content-of-a-secret"


@pytest.mark.parametrize(
    "more",
    [
        {"default_model_filename": "../../../secret.py"},
        {"default_model_filename": "{secret}"},
        {"output": [{"name": "Y", "data_type": "TYPE_INT32", "dims": [1], "label_filename": "../../secret.py"}]},
        {"output": [{"name": "Y", "data_type": "TYPE_INT32", "dims": [1], "label_filename": "{secret}"}]},
        {"parameters": {"EXECUTION_ENV_PATH": {"string_value": "$$TRITON_MODEL_DIRECTORY/../../secret.py"}}},
        {"model_warmup": [{"name": "w", "inputs": {"X": {"data_type": "TYPE_INT32", "dims": [1], "input_data_file": "../../secret.py"}}}]},
        {"model_warmup": [{"name": "w", "inputs": {"X": {"data_type": "TYPE_INT32", "dims": [1], "input_data_file": "{secret}"}}}]},
    ],
    ids=lambda more: json.dumps(more)[:60],
)
def test_paths_inside_a_configuration(more: dict[str, Any], server: Server, tmp_path: Path) -> None:
    """They do not lead out of the model's folder; nobody is told what is in a file there."""
    secret = server.folder.parent / "secret.py"
    secret.write_text(f"raise ValueError('{SECRET}')\n")
    text = _config("inside", **more).replace("{secret}", str(secret))
    try:
        status, body = _send(server, "inside", {"config": text, "file:1/model.py": _coded(python_source(1).encode())})
        assert 400 <= status <= 500, body
        assert SECRET not in body
        assert SECRET not in server.ask("POST", "/v2/repository/index").body.decode()
        assert server.ask("POST", "/v2/models/inside/infer", BODY).status in (404, 503)
    finally:
        secret.unlink()
        _send(server, "inside", verb="unload")


def _member(name: str, **how: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    content = b"" if how else b"harm"
    info.size = len(content)
    for key, value in how.items():
        setattr(info, key, value)
    return info, content


ARCHIVES: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    "parent": [_member("../../harm")],
    "absolute": [_member("{root}/harm")],
    "link, then a file": [_member("out", type=tarfile.SYMTYPE, linkname="{root}"), _member("out/harm")],
    "hard link": [_member("out", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
    "device": [_member("out", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_archives(what: str, server: Server) -> None:
    """An execution environment that would write outside its folder is refused."""
    root = server.folder.parent
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, content in ARCHIVES[what]:
            copy = tarfile.TarInfo(info.name.replace("{root}", str(root)))
            copy.size, copy.type, copy.linkname = info.size, info.type, info.linkname.replace("{root}", str(root))
            copy.devmajor, copy.devminor = info.devmajor, info.devminor
            archive.addfile(copy, io.BytesIO(content))
    environment = {"EXECUTION_ENV_PATH": {"string_value": "$$TRITON_MODEL_DIRECTORY/environment.tar.gz"}}
    files = {"file:1/model.py": _coded(python_source(1).encode()), "file:environment.tar.gz": _coded(buffer.getvalue())}
    status, body = _send(server, "archived", {"config": _config("archived", parameters=environment), **files})
    assert status == 400, body
    assert not list(root.rglob("*harm")) and not [path for path in _below(server.temporary) if path.name.endswith("harm")]
    _send(server, "archived", verb="unload")


def test_large_files(server: Server) -> None:
    """A large file is taken and let go again; a request that is large for nothing is refused; neither costs the server its memory."""
    content = _coded(os.urandom(3 * MIB)) * 8
    for _ in range(2):
        status, body = _send(server, "large", {"config": _config("large"), "file:1/blob": content})
        assert 400 <= status <= 500, body  # it has no model.py
    assert "model.py" in body
    assert _send(server, "large", {"x": content})[0] == 500
    assert _send(server, "large", {"config": _config("large"), "file:1/blob": content * 2})[0] == 400
    assert not [path for path in _below(server.temporary) if path.name == "blob"]
    assert _resident(server) < 1024 * MIB


def test_deep_bodies(server: Server) -> None:
    for body in (b"[" * 250_000, b'{"parameters":' + b"[" * 250_000, b'{"parameters":{"config":"' + b"[" * 250_000 + b'"}}'):
        for verb in ("models/good/load", "index"):
            status = server.ask("POST", f"/v2/repository/{verb}", body).status
            assert 400 <= status <= 500 or (verb == "index" and status == 200 and body.endswith(b"}")), (verb, body[:20], status)


def _resident(server: Server) -> int:
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * 4096
