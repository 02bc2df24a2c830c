"""The names that repositories in the cloud have on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from ...workers.contract.status import StatusError, invalid

SCHEMES = ("s3", "gs", "as", "abfs", "http", "https")
"""What the command line accepts. ``parse_address`` takes any scheme that fsspec knows, for tests."""

_S3_ENDPOINT = re.compile(r"(?:(https?)://([^/]*)|([^/:\]]+:[0-9]+|\[[0-9a-fA-F:]+\]:[0-9]+))/(.*)", re.DOTALL)
_HOST = re.compile(r"[A-Za-z0-9.\-]+|(?:[A-Za-z0-9.\-]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a repository is.

    ``root`` is what its driver calls it: ``bucket/path``, or for http an URL that ends with a slash. ``endpoint`` is the
    URL of an S3 server other than Amazon's; ``account`` and ``account_host`` are Azure's, each empty where not told.
    """

    name: str
    scheme: str
    root: str
    endpoint: str = ""
    account: str = ""
    account_host: str = ""


def is_cloud(name: str) -> bool:
    """Does a repository of the command line lie in the cloud?"""
    scheme, separator, _ = name.partition("://")
    return bool(separator) and scheme in SCHEMES


def parse_address(name: str) -> Address:
    """The address that a name says. Raises StatusError INVALID_ARG, never with what could be a password."""
    scheme, separator, rest = name.partition("://")
    if not separator:
        raise invalid("a repository in the cloud is named by a URL")
    if scheme in ("http", "https"):
        return _http(name, scheme)
    if scheme == "s3":
        return _s3(name, rest)
    if scheme == "as":
        account, _, rest = rest.partition("/")
        return Address(name, scheme, _root(scheme, rest), **_account(scheme, account))
    if scheme == "abfs":
        container, _, path = rest.partition("/")
        container, at, account = container.partition("@")
        return Address(name, scheme, _root(scheme, f"{container}/{path}"), **(_account(scheme, account) if at else {}))
    return Address(name, scheme, _root(scheme, rest))


def _s3(name: str, rest: str) -> Address:
    """``host:port/bucket`` and ``http(s)://host:port/bucket`` name a server of one's own, without TLS unless https is said."""
    matched = _S3_ENDPOINT.fullmatch(rest)
    if matched is None:
        return Address(name, "s3", _root("s3", rest))
    protocol, host, plain, path = matched.groups()
    return Address(name, "s3", _root("s3", path), endpoint=f"{protocol or 'http'}://{_host('s3', host if plain is None else plain)}")


def _http(name: str, scheme: str) -> Address:
    try:
        parts = urlsplit(name)
    except ValueError:
        raise _malformed(scheme, "it is no URL") from None
    if "@" in parts.netloc:
        raise _malformed(scheme, "a user and password would show up in logs; put them into the file that NETRC names")
    if parts.query or parts.fragment:
        raise _malformed(scheme, "it must be the address of a folder, without a query or fragment")
    path = quote("/".join(_parts(scheme, parts.path)), safe="/%~!$&'()*+,;=:@")
    return Address(name, scheme, f"{scheme}://{_host(scheme, parts.netloc)}/{path}{'/' if path else ''}")


def _account(scheme: str, account: str) -> dict[str, str]:
    """An account of Azure's by its name or its host."""
    host = _host(scheme, account)
    if "." not in host:
        return {"account": host}
    return {"account": host.partition(".")[0], "account_host": host.replace(".dfs.", ".blob.", 1)}


def _root(scheme: str, path: str) -> str:
    parts = _parts(scheme, path)
    if not parts:
        raise _malformed(scheme, "it names no bucket or container")
    if "@" in parts[0] or "?" in path:
        raise _malformed(scheme, "keys and signatures would show up in logs; put them into the environment")
    return "/".join(parts)


def _parts(scheme: str, path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") or "\0" in part for part in parts):
        raise _malformed(scheme, "its path has parts that name no folder")
    return parts


def _host(scheme: str, host: str) -> str:
    if not _HOST.fullmatch(host):
        raise _malformed(scheme, "it names no host")
    return host


def _malformed(scheme: str, why: str) -> StatusError:
    return invalid(f"invalid {scheme}:// model repository: {why}")
