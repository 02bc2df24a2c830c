"""One request that is sent to both servers, and how their replies are compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..wire import Reply, compact, exchange

COMPARED_HEADERS = ("content-type", "inference-header-content-length", "content-encoding", "accept-encoding", "allow", "transfer-encoding")
"""Reply headers that must be the same; Content-Length follows from the body."""

OURS = ("batch_cuts",)
"""Members of statistics that the real server has not."""

Rewrite = Callable[[Any], Any]
"""Replaces, in a reply's JSON, what must differ between the two servers."""


@dataclass(frozen=True)
class Case:
    """A request. ``rewrite`` is applied to both replies' JSON; without it the bodies must be equal byte for byte."""

    id: str
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    rewrite: Rewrite | None = None

    def send(self, port: int) -> Reply:
        """Send the request and return the reply."""
        return exchange(port, self.method, self.path, self.body, self.headers)


@dataclass(frozen=True)
class Difference:
    """A case that tensorfarm answers otherwise than release 24.10, and why that is right.

    ``status`` and ``text`` are what tensorfarm must answer; ``text`` is the error message. ``fatal``: the case kills
    release 24.10, so it is not asked at all.
    """

    why: str
    status: int
    text: str | None = None
    fatal: bool = False


def seen(case: Case, reply: Reply) -> dict[str, Any]:
    """What of a reply is compared."""
    content: Any = reply.body
    if case.rewrite is not None and reply.status == 200:
        content = case.rewrite(json.loads(reply.body))
    return {
        "status": reply.status,
        "headers": {name: reply.header(name) for name in COMPARED_HEADERS},
        "body": content,
    }


def check(case: Case, oracle: int, farm: int, differences: Mapping[str, Difference]) -> None:
    """Send ``case`` to both servers (ports) and compare; a listed difference must exist and be the one listed."""
    difference = differences.get(case.id)
    if difference is not None and difference.fatal:
        agree(case, seen(case, case.send(farm)), difference)
        return
    expected, got = seen(case, case.send(oracle)), seen(case, case.send(farm))
    if difference is None:
        assert got == expected
    else:
        assert got != expected, f"the servers agree on {case.id}: take it off the list of differences"
        agree(case, got, difference)


def agree(case: Case, got: Mapping[str, Any], difference: Difference) -> None:
    """Fail unless tensorfarm's reply is the one that the list of differences promises."""
    assert got["status"] == difference.status, got
    if difference.text is not None:
        assert json.loads(got["body"]) == {"error": difference.text}


def infer(
    id: str, model: str, content: Any, binary: bytes | None = None, headers: Mapping[str, str] | None = None, version: str = ""
) -> Case:
    """An inference request. ``content`` is the JSON part (text, bytes or values); ``binary`` follows it, with the header that says so."""
    text = content if isinstance(content, bytes) else compact(content)
    fields = dict(headers or {})
    if binary is not None:
        fields.setdefault("Inference-Header-Content-Length", str(len(text)))
    path = f"/v2/models/{model}/versions/{version}/infer" if version else f"/v2/models/{model}/infer"
    return Case(id, "POST", path, text + (binary or b""), fields)


def tensor(name: str, datatype: str, shape: list[int], data: Any = None, **parameters: Any) -> dict[str, Any]:
    """An input of a request, members in the order that the stock client sends."""
    content: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
    if parameters:
        content["parameters"] = parameters
    if data is not None:
        content["data"] = data
    return content


def verb(model: str, what: str, name: str = "", **more: Any) -> Case:
    """A request to one of the Python models that do what their input VERB says. ``name`` is the case's id."""
    return infer(name or f"{model}: {what}", model, {"inputs": [tensor("VERB", "BYTES", [1], [what])], **more})


def stream(model: str, what: str) -> Case:
    """The same by generate_stream, the one way of HTTP to decoupled models."""
    return Case(f"{model}: {what}", "POST", f"/v2/models/{model}/generate_stream", compact({"VERB": what}))
