"""The names that repositories in the cloud have on the command line."""

from __future__ import annotations

import pytest

from tensorfarm.server.repository.cloud_address import Address, is_cloud, parse_address
from tensorfarm.workers.contract.status import Code, StatusError


@pytest.mark.parametrize("name", ["s3://b", "gs://b", "as://a/c", "abfs://c", "http://h", "https://h"])
def test_what_the_command_line_accepts(name: str) -> None:
    assert is_cloud(name)


@pytest.mark.parametrize("name", ["/models", "models", "s3:/b", "s3", "file:///x", "memory://b", "ftp://h", "S3://b", "", "://"])
def test_anything_else_is_a_folder(name: str) -> None:
    assert not is_cloud(name)


@pytest.mark.parametrize(
    ("name", "root", "more"),
    [
        ("s3://bucket", "bucket", {}),
        ("s3://bucket/path/to/", "bucket/path/to", {}),
        ("s3://bucket//path", "bucket/path", {}),
        ("s3://127.0.0.1:9000/bucket/path", "bucket/path", {"endpoint": "http://127.0.0.1:9000"}),
        ("s3://minio.local:9000/bucket", "bucket", {"endpoint": "http://minio.local:9000"}),
        ("s3://[::1]:9000/bucket", "bucket", {"endpoint": "http://[::1]:9000"}),
        ("s3://http://minio:9000/bucket/path", "bucket/path", {"endpoint": "http://minio:9000"}),
        ("s3://https://s3.example.com/bucket/path", "bucket/path", {"endpoint": "https://s3.example.com"}),
        ("gs://bucket/path", "bucket/path", {}),
        ("as://account/container/path", "container/path", {"account": "account"}),
        (
            "as://account.blob.core.chinacloudapi.cn/container",
            "container",
            {"account": "account", "account_host": "account.blob.core.chinacloudapi.cn"},
        ),
        ("abfs://container/path", "container/path", {}),
        (
            "abfs://container@account.dfs.core.windows.net/path",
            "container/path",
            {"account": "account", "account_host": "account.blob.core.windows.net"},
        ),
        ("http://host:8080/models", "http://host:8080/models/", {}),
        ("https://host/a b/c%20d/", "https://host/a%20b/c%20d/", {}),
        ("https://host", "https://host/", {}),
        ("memory://bucket/path", "bucket/path", {}),
    ],
)
def test_addresses(name: str, root: str, more: dict[str, str]) -> None:
    assert parse_address(name) == Address(name, name.partition("://")[0], root, **more)


@pytest.mark.parametrize(
    "name",
    [
        "models",
        "s3://",
        "s3:///",
        "s3://bucket/../other",
        "s3://bucket/a\0b",
        "s3://https://host:port/bucket",
        "s3://https://host/",
        "s3://http:///bucket",
        "as://account",
        "as:///container",
        "as://acc/ount?x/c",
        "abfs://container@/path",
        "http://",
        "http:///path",
        "http://[::1/path",
        "http://host/path#part",
    ],
)
def test_what_is_no_address(name: str) -> None:
    with pytest.raises(StatusError) as caught:
        parse_address(name)
    assert caught.value.code is Code.INVALID_ARG


@pytest.mark.parametrize(
    "name",
    [
        "https://user:geheim@host/models",
        "https://host/models?token=geheim",
        "s3://key:geheim@bucket/path",
        "s3://https://key:geheim@host/bucket",
        "as://account/container?sig=geheim",
        "as://user:geheim@account/container",
        "abfs://container@user:geheim@account/path",
        "gs://geheim@bucket",
    ],
)
def test_secrets_are_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(StatusError) as caught:
        parse_address(name)
    assert "geheim" not in caught.value.message
