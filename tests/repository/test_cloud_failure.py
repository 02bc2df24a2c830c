"""What is said of a driver's exceptions, and which are worth another attempt."""

from __future__ import annotations

import errno

import pytest

from tensorfarm.server.repository.cloud_failure import MAX_REASON_CHARACTERS, failure, is_denied, is_missing, is_transient
from tensorfarm.workers.contract.status import Code


class Response(Exception):
    """Stands for the drivers' own exceptions: each has another attribute for the status of the response."""

    def __init__(self, text: str = "", **attributes: object) -> None:
        super().__init__(text)
        self.__dict__.update(attributes)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def boto(status: int) -> Response:
    return Response(response={"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": "x"}})


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.EBUSY, "busy"),
        OSError(errno.EHOSTUNREACH, "unreachable"),
        Response(status=503),
        Response(status_code=500),
        Response(code=429),
        boto(503),
        caused(FileNotFoundError("url"), Response(status=500)),
        caused(OSError(errno.EREMOTEIO, "x"), boto(500)),
    ],
)
def test_transient(error: Exception) -> None:
    assert is_transient(error)
    assert failure("x", error, ()).code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        PermissionError(13, "denied"),
        FileNotFoundError(2, "gone"),
        ValueError(),
        Response(code="AccessDenied"),
        Response(code=3),
        Response(status=404),
        boto(403),
        Response(response={}),
    ],
)
def test_lasting(error: Exception) -> None:
    assert not is_transient(error)
    assert failure("x", error, ()).code is Code.INTERNAL


def test_exceptions_of_the_drivers_are_known_by_their_classes() -> None:
    aiohttp = pytest.importorskip("aiohttp")
    assert is_transient(aiohttp.ClientPayloadError("cut"))
    exceptions = pytest.importorskip("botocore.exceptions")
    assert is_transient(exceptions.EndpointConnectionError(endpoint_url="x"))
    assert not is_transient(exceptions.NoCredentialsError())
    azure = pytest.importorskip("azure.core.exceptions")
    assert is_transient(azure.ServiceRequestError("cut"))
    assert not is_transient(azure.ResourceNotFoundError("gone"))


def test_denied_and_missing() -> None:
    assert is_denied(PermissionError()) and is_denied(caused(OSError(), boto(403))) and is_denied(Response(status=401))
    assert not is_denied(FileNotFoundError()) and not is_denied(Response(status=404))
    assert is_missing(FileNotFoundError()) and is_missing(caused(FileNotFoundError(), boto(404)))
    assert not is_missing(caused(FileNotFoundError(), Response(status=500))) and not is_missing(Response(status=404))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/private/path"), "OSError: No space left on device"),
        (ValueError("first line\nsecond line"), "ValueError: first line"),
        (ValueError(), "ValueError"),
        (ValueError("key geheim is wrong"), "ValueError: key *** is wrong"),
        (ValueError("GET https://host/x?X-Amz-Signature=abc failed"), "ValueError: GET https://host/x?*** failed"),
        (ValueError("https://user:word@host/x"), "ValueError: https://***@host/x"),
        (ValueError("https://user:w@rd@host/x"), "ValueError: https://***@host/x"),
        (ValueError("x" * 1000), f"ValueError: {'x' * MAX_REASON_CHARACTERS} ..."),
        (FileNotFoundError("bucket/x"), "there is no such file or folder"),
        (caused(FileNotFoundError("no such bucket"), boto(404)), "FileNotFoundError: no such bucket"),
    ],
)
def test_texts(error: Exception, reason: str) -> None:
    assert failure("list s3://bucket", error, ("geheim",)).message == f"failed to list s3://bucket: {reason}"
