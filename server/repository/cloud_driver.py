"""The drivers of stores: fsspec and its packages, imported only when a repository needs them."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from ...workers.contract.status import internal
from .cloud_address import Address
from .cloud_credentials import Credentials

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
"""How long a store may send nothing. There is no limit to how long a whole file takes."""

S3_ATTEMPTS = 2
S3_PART_BYTE_SIZE = 16 << 20

PARTS = 4
"""Parts of one file that are downloaded at the same time; the drivers hold each in memory."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A package for fsspec: its distribution, module and class, and how often what fails for a moment is tried.

    Google's and Azure's packages try again by themselves, for up to a minute.
    """

    distribution: str
    module: str
    type_name: str
    attempts: int
    options: Callable[[Credentials], dict[str, Any]]


def attempts_at(scheme: str) -> int:
    """How often what fails for a moment is tried."""
    return _DRIVERS[scheme].attempts if scheme in _DRIVERS else 3


def open_filesystem(address: Address, credentials: Credentials) -> Any:
    """A file system of fsspec that remembers no listings.

    Raises StatusError INTERNAL where the package is missing, and whatever the driver raises where it cannot begin.
    """
    driver = _DRIVERS.get(address.scheme)
    try:
        if driver is None:
            make, options = importlib.import_module("fsspec").get_filesystem_class(address.scheme), {}
        else:
            make, options = getattr(importlib.import_module(driver.module), driver.type_name), driver.options(credentials)
    except ImportError:
        missing = driver.distribution if driver else "fsspec"
        raise internal(
            f"{address.scheme}:// file-system not supported: the package {missing} is missing or broken. "
            "To enable, run: pip install 'tensorfarm[cloud]'"
        ) from None
    filesystem = make(**options, **credentials.options, use_listings_cache=False, skip_instance_cache=True)
    if address.scheme == "s3":
        filesystem.retries = S3_ATTEMPTS
    return filesystem


def break_off() -> None:
    """End what fsspec's own thread does for anybody, whatever it waits for. Who waits for the thread goes on, with None."""
    module = sys.modules.get("fsspec.asyn")
    loop = module.loop[0] if module is not None else None
    if loop is not None and loop.is_running():
        loop.call_soon_threadsafe(_cancel_all, loop)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


def download(filesystem: Any, path: str, to: str | BinaryIO, received: Callable[[int], None]) -> None:
    """Copy a file of the store. ``received`` is told how many bytes there are so far, and may raise to end it."""

    def told(size: int | None, value: int, **_: Any) -> None:
        received(value)

    callbacks = importlib.import_module("fsspec.callbacks")
    filesystem.get_file(path, to, callback=callbacks.Callback(hooks={"received": told}))


def _s3_options(_: Credentials) -> dict[str, Any]:
    # The client's own retries, times those of the driver, times ours would be minutes.
    retries = {"mode": "standard", "total_max_attempts": 1}
    return {
        "config_kwargs": {"retries": retries, "connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S},
        "default_block_size": S3_PART_BYTE_SIZE,
        "max_concurrency": PARTS,
    }


def _gs_options(_: Credentials) -> dict[str, Any]:
    return {"requests_timeout": _timeout()}


def _azure_options(credentials: Credentials) -> dict[str, Any]:
    options: dict[str, Any] = {"connection_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S, "max_concurrency": PARTS}
    if credentials.managed_identity is not None:
        identity = importlib.import_module("azure.identity.aio")
        options["credential"] = identity.ManagedIdentityCredential(client_id=credentials.managed_identity or None)
    return options


def _http_options(_: Credentials) -> dict[str, Any]:
    return {
        # Redirects would lead to hosts that nobody named, packed bodies are longer than they say.
        "allow_redirects": False,
        "client_kwargs": {
            "timeout": _timeout(),
            "trust_env": True,
            "auto_decompress": False,
            "headers": {"Accept-Encoding": "identity"},
            "raise_for_status": _refuse,
        },
        "encoded": True,
    }


def _timeout() -> Any:
    return importlib.import_module("aiohttp").ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)


async def _refuse(response: Any) -> None:
    """Let no response through but a successful one."""
    if 300 <= response.status < 400:
        raise OSError("redirects are not followed")
    if response.status == 404:
        raise FileNotFoundError("Not Found")
    response.raise_for_status()


_AZURE = Driver("adlfs", "adlfs", "AzureBlobFileSystem", 1, _azure_options)
_HTTP = Driver("aiohttp", "fsspec.implementations.http", "HTTPFileSystem", 3, _http_options)
_DRIVERS = {
    "s3": Driver("s3fs", "s3fs", "S3FileSystem", 3, _s3_options),
    # The class that gcsfs itself would take asks over gRPC what kind of bucket it is; what is asked here is the same for all.
    "gs": Driver("gcsfs", "gcsfs.core", "GCSFileSystem", 1, _gs_options),
    "as": _AZURE,
    "abfs": _AZURE,
    "http": _HTTP,
    "https": _HTTP,
}
