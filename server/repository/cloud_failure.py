"""What went wrong with a store, in words that hold no secret."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator, Sequence

from ...workers.contract.status import StatusError, internal, unavailable

MAX_REASON_CHARACTERS = 200

_TRANSIENT = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "azure.core.exceptions": ("ServiceRequestError", "ServiceResponseError"),
    "botocore.exceptions": ("ConnectionError", "HTTPClientError", "IncompleteReadError"),
}
_TRANSIENT_ERRNOS = frozenset((errno.EAGAIN, errno.EBUSY, errno.EREMOTEIO, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN))
_QUERY = re.compile(r"\?[^\s'\"<>]*")
_USER = re.compile(r"//[^/\s'\"]*@")


def failure(what: str, error: BaseException, secrets: Sequence[str]) -> StatusError:
    """What could not be done, and the driver's exception that says why. UNAVAILABLE where it may be possible soon, else INTERNAL."""
    make = unavailable if is_transient(error) else internal
    return make(f"failed to {what}: {_reason(error, secrets)}")


def is_transient(error: BaseException) -> bool:
    """Is it worth another attempt?"""
    for each in _chain(error):
        status = _http_status(each)
        if status is not None:
            return status >= 500 or status in (408, 429)
        if isinstance(each, ConnectionError | TimeoutError):
            return True
        if isinstance(each, OSError) and each.errno in _TRANSIENT_ERRNOS:
            return True
        for module, names in _TRANSIENT.items():
            # An exception of theirs can only be raised once they are imported.
            loaded = sys.modules.get(module)
            if loaded is not None and isinstance(each, tuple(getattr(loaded, name) for name in names if hasattr(loaded, name))):
                return True
    return False


def is_denied(error: BaseException) -> bool:
    """Were the credentials refused?"""
    return any(isinstance(each, PermissionError) or _http_status(each) in (401, 403) for each in _chain(error))


def is_missing(error: BaseException) -> bool:
    """Did the store say that there is no such thing?"""
    if not isinstance(error, FileNotFoundError):
        return False
    return all(isinstance(each, FileNotFoundError) or _http_status(each) == 404 for each in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__


def _http_status(error: BaseException) -> int | None:
    """The status of the HTTP response that an exception tells of: each driver has its own name for it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    for name in ("status", "status_code", "code"):
        status = getattr(error, name, None)
        if isinstance(status, int) and 100 <= status <= 599:
            return status
    return None


def _reason(error: BaseException, secrets: Sequence[str]) -> str:
    """One line of an exception's own words. Addresses lose their queries, which may be signed, and their users."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is None:
        return "there is no such file or folder"
    if isinstance(error, OSError) and error.strerror and error.errno:
        text = str(error.strerror)
    else:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    for secret in secrets:
        text = text.replace(secret, "***")
    text = _USER.sub("//***@", _QUERY.sub("?***", text))
    if len(text) > MAX_REASON_CHARACTERS:
        text = f"{text[:MAX_REASON_CHARACTERS]} ..."
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind
