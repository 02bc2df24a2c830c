"""What a client sent that cannot be taken."""

from __future__ import annotations


class Malformed(Exception):
    """A request that cannot be trusted to end where it says: answered once, then the connection closes.

    ``as_json`` marks the replies that the reference sends as application/json; ``retry_after_s`` is when it is worth while to come
    again, in seconds, 0 where that is not known.
    """

    def __init__(self, status: int, message: str, as_json: bool = False, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.as_json = as_json
        self.retry_after_s = retry_after_s
