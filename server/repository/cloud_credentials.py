"""What opens a store: from the file that TRITON_CLOUD_CREDENTIAL_PATH names, else from the drivers' usual environment.

The file has credentials by scheme and by the beginning of a repository's name; the longest that fits is taken:
``{"s3": {"": {…}, "s3://bucket": {…}}, "gs": {"": "key file"}, "as": {"as://account/container": {…}}}``.
Source: tritonserver's user guide, "Cloud Storage with Credential file".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ...workers.contract.status import internal
from .cloud_address import Address

VARIABLE = "TRITON_CLOUD_CREDENTIAL_PATH"

T = TypeVar("T")


class S3Entry(msgspec.Struct, frozen=True):
    """Credentials for S3; what is empty is left to the driver, which looks into the environment and Amazon's files."""

    secret_key: str = ""
    key_id: str = ""
    region: str = ""
    session_token: str = ""
    profile: str = ""


class AzureEntry(msgspec.Struct, frozen=True):
    """Credentials for Azure: an account's key, or ``auth_type`` ``managed_identity`` or ``default``."""

    account_str: str = ""
    account_key: str = ""
    auth_type: str = ""
    client_id: str = ""


class _File(msgspec.Struct, frozen=True):
    s3: dict[str, S3Entry] = msgspec.field(default_factory=dict)
    gs: dict[str, str] = msgspec.field(default_factory=dict)
    azure: dict[str, AzureEntry] = msgspec.field(default_factory=dict, name="as")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Options for a driver, empty where it shall look for itself, and which of their values must never be shown.

    ``managed_identity`` asks for Azure's managed identity, of the client with that id if it is not empty.
    """

    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    managed_identity: str | None = None


def find_credentials(address: Address, environment: Mapping[str, str]) -> Credentials:
    """The credentials for a repository.

    Raises StatusError INTERNAL where the file cannot be used or has none for this repository.
    """
    path = environment.get(VARIABLE)
    file = _read(path) if path else None
    if address.scheme == "s3":
        return _s3(_longest(file.s3, address) if file else S3Entry(), address)
    if address.scheme == "gs":
        return _gs(_longest(file.gs, address) if file else "", environment)
    if address.scheme in ("as", "abfs"):
        return _azure(_longest(file.azure, address) if file else _azure_environment(environment), address)
    return Credentials()


def _s3(entry: S3Entry, address: Address) -> Credentials:
    # A key without its secret, or the other way round, is none.
    keyed = bool(entry.key_id and entry.secret_key)
    options = {
        "key": entry.key_id if keyed else "",
        "secret": entry.secret_key if keyed else "",
        "token": entry.session_token if keyed else "",
        "profile": entry.profile,
        "endpoint_url": address.endpoint,
        "client_kwargs": {"region_name": entry.region} if entry.region else {},
    }
    return Credentials({name: value for name, value in options.items() if value}, _shown_never(entry.secret_key, entry.session_token))


def _gs(key_file: str, environment: Mapping[str, str]) -> Credentials:
    if key_file:
        # The driver would take the name of a missing file for a token, and send it.
        if not Path(key_file).is_file():
            raise internal(f"{VARIABLE}: a file that it names for gs:// does not exist")
        return Credentials({"token": key_file})
    # Emulators ask for nothing, and Google's own libraries send them nothing.
    return Credentials({"token": "anon"} if environment.get("STORAGE_EMULATOR_HOST") else {})


def _azure_environment(environment: Mapping[str, str]) -> AzureEntry:
    """The variables of tritonserver; the driver knows its own ones (AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_SAS_TOKEN …)."""
    return AzureEntry(
        account_str=environment.get("AZURE_STORAGE_ACCOUNT", ""),
        account_key=environment.get("AZURE_STORAGE_KEY", ""),
        auth_type=environment.get("AZURE_STORAGE_AUTH_TYPE", ""),
        client_id=environment.get("AZURE_STORAGE_CLIENT_ID", ""),
    )


def _azure(entry: AzureEntry, address: Address) -> Credentials:
    # The address goes first: a key for another account opens nothing here, and the store says so.
    options = {"account_name": address.account or entry.account_str, "account_host": address.account_host}
    identity = entry.client_id if entry.auth_type == "managed_identity" else None
    if not entry.auth_type:
        options["account_key"] = entry.account_key
    return Credentials({name: value for name, value in options.items() if value}, _shown_never(entry.account_key), identity)


def _shown_never(*values: str) -> tuple[str, ...]:
    return tuple(value for value in values if value)


def _longest(entries: Mapping[str, T], address: Address) -> T:
    fitting = [beginning for beginning in entries if address.name.startswith(beginning)]
    if not fitting:
        raise internal(f"{VARIABLE}: no credentials for {address.name}")
    return entries[max(fitting, key=len)]


def _read(path: str) -> _File:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=_File)
    except OSError as error:
        raise internal(f"{VARIABLE}: the file cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        # The decoder's own words may hold a key of the document, and with it a part of a secret.
        raise internal(f"{VARIABLE}: the file is not a JSON document of credentials for s3, gs and as") from None
