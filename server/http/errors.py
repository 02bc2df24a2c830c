"""How a failure looks on HTTP: a status and the one-member object ``{"error": "..."}``."""

from __future__ import annotations

from ...workers.contract.json_writing import quote
from ...workers.contract.status import Code, StatusError
from ..admission import Overloaded
from .exchange import Headers, Reply

JSON_TYPE = (b"Content-Type", b"application/json")
PLAIN_TYPE = (b"Content-Type", b"text/plain")

_HTTP_STATUS = {
    Code.UNKNOWN: 400,
    Code.INTERNAL: 500,
    Code.NOT_FOUND: 404,
    Code.INVALID_ARG: 400,
    Code.UNAVAILABLE: 503,
    Code.UNSUPPORTED: 501,
    Code.ALREADY_EXISTS: 400,
    Code.CANCELLED: 400,
}


def http_status(code: Code) -> int:
    """The HTTP status of an error code."""
    return _HTTP_STATUS[code]


def error_body(message: str) -> bytes:
    """The body of an error reply."""
    return b'{"error":' + quote(message) + b"}"


def retry_after(seconds: int) -> tuple[bytes, bytes]:
    """The header that says when to come again."""
    return b"Retry-After", b"%d" % seconds


def error_reply(error: StatusError, plain: bool = False) -> Reply:
    """The reply of a handler that failed; some routes send theirs as text/plain."""
    headers: Headers = (PLAIN_TYPE if plain else JSON_TYPE,)
    if isinstance(error, Overloaded):
        headers = (*headers, retry_after(error.retry_after_s))
    return Reply(http_status(error.code), headers, (error_body(error.message),))


def plain_error_reply(status: int, message: str, retry_after_s: int = 0) -> Reply:
    """An error reply that the oracle sends as text/plain: routing, restricted APIs, framing."""
    headers: Headers = (PLAIN_TYPE, retry_after(retry_after_s)) if retry_after_s else (PLAIN_TYPE,)
    return Reply(status, headers, (error_body(message),))
