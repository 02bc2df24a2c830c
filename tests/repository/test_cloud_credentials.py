"""Which credentials open which repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tensorfarm.server.repository.cloud_address import parse_address
from tensorfarm.server.repository.cloud_credentials import VARIABLE, find_credentials
from tensorfarm.workers.contract.status import Code, StatusError

S3 = {"secret_key": "secret", "key_id": "id", "region": "eu-north-1", "session_token": "token", "profile": ""}


def options(name: str, environment: dict[str, str]) -> dict[str, Any]:
    return dict(find_credentials(parse_address(name), environment).options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "credentials.json"


def written(file: Path, **content: object) -> dict[str, str]:
    file.write_text(json.dumps(content))
    return {VARIABLE: str(file)}


def test_without_a_file_the_drivers_look_for_themselves() -> None:
    for name in ("s3://bucket/path", "gs://bucket", "http://host/models", "memory://x"):
        assert options(name, {}) == {}
    assert options("s3://https://host/bucket", {}) == {"endpoint_url": "https://host"}


def test_s3(file: Path) -> None:
    environment = written(file, s3={"": S3})
    assert options("s3://bucket", environment) == {
        "key": "id",
        "secret": "secret",
        "token": "token",
        "client_kwargs": {"region_name": "eu-north-1"},
    }
    environment = written(file, s3={"": {"profile": "p", "key_id": "id"}})
    assert options("s3://127.0.0.1:9000/bucket", environment) == {"profile": "p", "endpoint_url": "http://127.0.0.1:9000"}


def test_the_longest_beginning_that_fits_is_taken(file: Path) -> None:
    entries = {name: {**S3, "key_id": name or "empty"} for name in ("", "s3://bucket", "s3://bucket/path", "s3://https://host/bucket")}
    environment = written(file, s3=entries)
    for name, expected in {
        "s3://other": "empty",
        "s3://bucket": "s3://bucket",
        "s3://bucket/path/below": "s3://bucket/path",
        "s3://bucket/elsewhere": "s3://bucket",
        "s3://https://host/bucket/x": "s3://https://host/bucket",
    }.items():
        assert options(name, environment)["key"] == expected


def test_a_file_without_credentials_for_a_repository_is_an_error(file: Path) -> None:
    for environment in (written(file, s3={"s3://other": S3}), written(file)):
        with pytest.raises(StatusError) as caught:
            find_credentials(parse_address("s3://bucket/path"), environment)
        assert (caught.value.code, caught.value.message) == (Code.INTERNAL, f"{VARIABLE}: no credentials for s3://bucket/path")
    assert options("https://host/models", written(file)) == {}


def test_google(file: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    key.touch()
    environment = written(file, gs={"": "", "gs://bucket": str(key), "gs://gone": str(tmp_path / "gone")})
    assert options("gs://bucket/path", environment) == {"token": str(key)}
    assert options("gs://other", environment) == {}
    assert options("gs://other", {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:1"}) == {"token": "anon"}
    with pytest.raises(StatusError, match="a file that it names for gs:// does not exist"):
        options("gs://gone", environment)


def test_azure(file: Path) -> None:
    entries = {
        "": {"account_str": "one", "account_key": "a2V5"},
        "as://two/container": {"account_str": "", "account_key": "b3RoZXI="},
        "as://three/": {"auth_type": "managed_identity", "client_id": "client", "account_key": "unused"},
        "as://four/": {"auth_type": "default", "account_key": "unused"},
    }
    environment = written(file, **{"as": entries})
    assert options("abfs://container/path", environment) == {"account_name": "one", "account_key": "a2V5"}
    assert options("as://two/container/path", environment) == {"account_name": "two", "account_key": "b3RoZXI="}
    assert options("as://four/container", environment) == {"account_name": "four"}
    found = find_credentials(parse_address("as://three/container"), environment)
    assert dict(found.options) == {"account_name": "three"} and found.managed_identity == "client"


def test_azure_by_the_environment() -> None:
    environment = {"AZURE_STORAGE_ACCOUNT": "one", "AZURE_STORAGE_KEY": "a2V5"}
    assert options("abfs://container", environment) == {"account_name": "one", "account_key": "a2V5"}
    assert options("as://two/container", environment) == {"account_name": "two", "account_key": "a2V5"}
    environment = {"AZURE_STORAGE_AUTH_TYPE": "managed_identity"}
    assert find_credentials(parse_address("as://two/container"), environment).managed_identity == ""


def test_the_file_goes_before_the_environment(file: Path) -> None:
    environment = {"AZURE_STORAGE_KEY": "ZW52", **written(file, **{"as": {"": {"account_key": "ZmlsZQ=="}}})}
    assert options("as://account/container", environment)["account_key"] == "ZmlsZQ=="


@pytest.mark.parametrize(
    "content",
    [
        "",
        "geheim",
        '{"s3": {"": {"secret_key": "geheim"}',
        '{"s3": {"": "geheim"}}',
        '{"s3": "geheim"}',
        '{"s3": {"": {"key_id": 3, "geheim": 1}}}',
        '["geheim"]',
        '{"s3": ' + "[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_broken_file_is_an_error_that_repeats_nothing(file: Path, content: str | bytes) -> None:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(StatusError) as caught:
        options("s3://bucket", {VARIABLE: str(file)})
    assert caught.value.message == f"{VARIABLE}: the file is not a JSON document of credentials for s3, gs and as"


def test_a_missing_file_is_an_error(file: Path) -> None:
    with pytest.raises(StatusError) as caught:
        options("s3://bucket", {VARIABLE: str(file)})
    assert caught.value.message == f"{VARIABLE}: the file cannot be read: No such file or directory"


def test_secrets_do_not_show(file: Path) -> None:
    found = find_credentials(parse_address("s3://bucket"), written(file, s3={"": S3}))
    assert found.secrets == ("secret", "token")
    assert "secret'" not in repr(found) and "token'" not in repr(found)
