"""Repositories at Amazon, Google and Azure: their drivers, on servers of this machine."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

pytest.importorskip("fsspec")

from tensorfarm.server.repository.cloud import Cloud
from tensorfarm.server.repository.cloud_credentials import VARIABLE
from tensorfarm.server.repository.cloud_store import Mark
from tensorfarm.workers.contract.status import Code, StatusError

from .stores import AzureAnswers, GoogleAnswers, fsspec_thread, loaded, running, tree

BIG = bytes(range(256)) * 80_000  # more than one part of a download, 20 MB

OBJECTS = {
    "repository/m/config.pbtxt": b"config",
    "repository/m/1/model.bin": BIG,
    "repository/m/2/model.bin": b"second",
    "repository/m/2/": b"",
    "repository/m/warmup/zeros": b"0",
    "repository/e/": b"",
    "repository/e/1/": b"",
    "repository/e/config.pbtxt": b"ensemble",
    "repository/.hidden/1/x": b"",
    "repository/readme": b"",
    "repositories/other/1/x": b"",
    "repository/mm/1/x": b"",
}
FILLED = {"config.pbtxt": b"config", "1/": None, "1/model.bin": BIG, "warmup/": None, "warmup/zeros": b"0"}
SECRET = "geheimgeheimgeheim"


def check(cloud: Cloud) -> None:
    """What every store must do with OBJECTS."""
    cloud.check()
    assert cloud.model_names() == ["e", "m", "mm"]
    assert cloud.stamps("none") is None
    stamps = cloud.stamps("m")
    assert stamps is not None and stamps == cloud.stamps("m")
    assert {name: mark and mark.byte_size for name, mark in stamps.items()} == {
        "1/": None, "2/": None, "warmup/": None, "config.pbtxt": 6, "1/model.bin": len(BIG), "2/model.bin": 6, "warmup/zeros": 1,
    }  # fmt: skip
    assert all(mark.tag for mark in stamps.values() if mark is not None)
    assert tree(loaded(cloud, "m", 1).directory) == FILLED
    assert tree(loaded(cloud, "e", 1).directory) == {"config.pbtxt": b"ensemble", "1/": None}


@pytest.fixture(scope="module")
def amazon() -> Iterator[str]:
    """An S3 server with OBJECTS in its bucket; its ``host:port``."""
    pytest.importorskip("s3fs")
    pytest.importorskip("flask_cors")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    with fsspec_thread(), pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": SECRET, "DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")  # so that every listing has pages
        host, port = server.get_host_and_port()
        filesystem = s3(f"{host}:{port}")
        filesystem.mkdir("bucket")
        for name, content in OBJECTS.items():
            filesystem.pipe_file(f"bucket/{name}", content)
        del filesystem
        yield f"{host}:{port}"
        # moto keeps large objects in open files
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST"), timeout=20).close()
    server.stop()


def s3(host: str) -> object:
    import s3fs

    return s3fs.S3FileSystem(endpoint_url=f"http://{host}", skip_instance_cache=True)


@pytest.mark.parametrize("protocol", ["", "http://"])
def test_amazon(amazon: str, protocol: str) -> None:
    cloud = Cloud(f"s3://{protocol}{amazon}/bucket/repository/")
    check(cloud)
    cloud.close()


def test_amazon_by_the_credential_file(amazon: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path_factory.mktemp("credentials") / "file.json"
    name = f"s3://{amazon}/bucket/repository"
    file.write_text(json.dumps({"s3": {f"s3://{amazon}": {"key_id": "of the file", "secret_key": SECRET, "region": "us-east-1"}}}))
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable)
    cloud = Cloud(name, environment={VARIABLE: str(file)})
    assert cloud.model_names() == ["e", "m", "mm"]
    cloud.close()


def test_a_change_at_amazon_is_seen_and_a_rewrite_is_none(amazon: str) -> None:
    cloud = Cloud(f"s3://{amazon}/bucket/repository")
    before = cloud.stamps("mm")
    filesystem = s3(amazon)
    filesystem.pipe_file("bucket/repository/mm/1/x", b"")  # type: ignore[attr-defined]
    assert before and cloud.stamps("mm") == before
    filesystem.pipe_file("bucket/repository/mm/1/x", b"new")  # type: ignore[attr-defined]
    after = cloud.stamps("mm")
    assert after and set(after) == set(before) and after["1/x"] != before["1/x"]
    filesystem.pipe_file("bucket/repository/mm/1/x", b"")  # type: ignore[attr-defined]
    cloud.close()


@pytest.mark.parametrize("key", ["x//y", "/x", "a/../b", "./x"])
def test_hostile_keys_at_amazon_are_refused(amazon: str, key: str) -> None:
    botocore = pytest.importorskip("botocore.session")
    client = botocore.get_session().create_client("s3", endpoint_url=f"http://{amazon}")
    client.put_object(Bucket="bucket", Key=f"hostile/m/{key}", Body=b"")
    cloud = Cloud(f"s3://{amazon}/bucket/hostile")
    try:
        with pytest.raises(StatusError) as caught:
            cloud.stamps("m")
        assert caught.value.message == f"the name {key!r} cannot be given to a file"
    finally:
        client.delete_object(Bucket="bucket", Key=f"hostile/m/{key}")
        client.close()
        cloud.close()


def test_errors_of_amazon(amazon: str) -> None:
    for name, reason in {
        f"s3://{amazon}/nowhere/repository": "FileNotFoundError: The specified bucket does not exist",
        f"s3://{amazon}/bucket/nowhere": "there is no such file or folder",
    }.items():
        cloud = Cloud(name)
        with pytest.raises(StatusError) as caught:
            cloud.check()
        assert (caught.value.code, caught.value.message) == (Code.INTERNAL, f"failed to list {name}: {reason}")
        cloud.close()


def test_nobody_is_amazon(amazon: str) -> None:
    slept: list[float] = []
    cloud = Cloud("s3://127.0.0.1:1/bucket", sleep=slept.append)
    with pytest.raises(StatusError) as caught:
        cloud.check()
    assert caught.value.code is Code.UNAVAILABLE and "EndpointConnectionError" in caught.value.message
    assert SECRET not in caught.value.message
    assert slept == [0.5, 2.0]
    cloud.close()


def test_google(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gcsfs")
    with running(GoogleAnswers) as server, fsspec_thread():
        server.objects = dict(OBJECTS)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        cloud = Cloud("gs://bucket/repository")
        check(cloud)
        before = cloud.stamps("mm")
        assert before and before["1/x"] == Mark(0, "0")
        server.objects["repository/mm/1/x"] = b"new"
        assert cloud.stamps("mm") != before
        cloud.close()


AZURE = """
import sys
from tensorfarm.server.repository.cloud import Cloud
from tests.repository.test_cloud_stores import check

for name in sys.argv[1:]:
    cloud = Cloud(name)
    check(cloud)
    cloud.close()
print("checked")
"""


def test_azure() -> None:
    """In a process of its own: adlfs keeps its connections until the process ends."""
    pytest.importorskip("adlfs")
    with running(AzureAnswers) as server:
        # Azure has names with a slash at the end only where its hierarchical namespace is off.
        server.objects = dict(OBJECTS)
        account = f"DefaultEndpointsProtocol=http;AccountName=account;AccountKey=c2VjcmV0;BlobEndpoint={server.url}/account;"
        environment = {**os.environ, "AZURE_STORAGE_CONNECTION_STRING": account}
        names = ["as://account/container/repository", "abfs://container@account.dfs.core.windows.net/repository"]
        done = subprocess.run(
            [sys.executable, "-c", AZURE, *names], env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
    assert done.stdout == "checked\n", done.stderr
    assert (done.returncode, done.stderr) == (0, "")
