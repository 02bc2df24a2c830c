"""What the head of an inference request says: read once for all requests with the same head."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...workers.contract.status import invalid
from ..door.content_encoding import chosen_encoding
from .exchange import Head

_LENGTH = re.compile(rb"-?[0-9]{1,19}")
_NO_LENGTH = re.compile(rb"-?[0-9]+")


@dataclass(frozen=True, slots=True)
class InferHead:
    """An inference request's head.

    ``version`` is empty for the newest one. ``content_encoding`` is the body's, ``reply_encoding`` what the client wants
    (``identity``, ``gzip`` or ``deflate``). ``json_length`` is the value of Inference-Header-Content-Length where that
    is a number, ``json_length_text`` what it is in any case; both are None where the head has none.
    """

    model: str
    version: str
    content_encoding: bytes | None
    reply_encoding: str
    json_length: int | None
    json_length_text: bytes | None

    def json_byte_size(self, content_length: int) -> int:
        """The size of a body's JSON part, 0 for a raw request: all of it unless the head says otherwise.

        ``content_length`` is that of the decompressed body. Raises StatusError INVALID_ARG.
        """
        if self.json_length_text is None:
            return content_length
        length = self.json_length
        if length is None or not 0 <= length <= content_length:
            raise invalid(self._objection(content_length))
        return length

    def _objection(self, content_length: int) -> str:
        text = self.json_length_text or b""
        got = text.decode("utf-8", "replace")
        if self.json_length is not None:
            return f"inference header size should be in range (0, {content_length}), got: {got}"
        if not _NO_LENGTH.fullmatch(text):
            return f"Unable to parse Inference-Header-Content-Length, got: {got}"
        return f"Unable to parse Inference-Header-Content-Length, value is out of range [ {-(2**31)}, {2**31 - 1} ], got: {got}"


def infer_head(head: Head, model: str, version: str) -> InferHead:
    """Read the head of a request to a model and, where ``version`` is not empty, one version of it."""
    fields = dict(head.headers)
    text = fields.get(b"inference-header-content-length")
    if text is not None and len(fields) != len(head.headers):
        text = b", ".join([value for name, value in head.headers if name == b"inference-header-content-length"])
    length = int(text) if text is not None and _LENGTH.fullmatch(text) else None
    if length is not None and not -(2**31) <= length < 2**31:
        length = None
    accepted = fields.get(b"accept-encoding")
    encoding = "identity" if accepted is None else chosen_encoding(accepted)
    return InferHead(model, version, fields.get(b"content-encoding"), encoding, length, text)
