"""Response senders, decoupled models and coroutines. Decoupled models are asked by generate_stream, the one way of HTTP to them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..wire import exchange
from .case import Case, Difference, check, infer, stream, tensor, verb

SENDERS = [
    *(verb("senders", what) for what in ("none", "list_of_none", "final_apart", "error", "late", "also_returned", "only_final")),
    verb("senders", "misuse"),
    verb("senders", "noted"),
    *(verb("asynchronous", what) for what in ("answer", "raise", "number")),
]

STREAMS = [
    *(stream("streams", what) for what in ("no_response", "one_response", "three_responses", "many_responses", "error_first")),
    *(stream("streams", what) for what in ("error_later", "empty_between", "from_thread", "raised", "raised_later", "raised_last")),
    *(stream("streams", what) for what in ("returned", "returned_nothing", "returned_late", "two_references", "misuse", "noted")),
    infer("streams by infer", "streams", {"inputs": [tensor("VERB", "BYTES", [1], ["one_response"])]}),
    stream("asynchronous_streams", "two responses"),
    stream("asynchronous", "by a stream"),
]

DIFFERENCES: dict[str, Difference] = {}


@pytest.mark.parametrize("case", [*SENDERS, *STREAMS], ids=lambda case: case.id)
def test_responses(case: Case, python_oracle: int, python_farm: int) -> None:
    check(case, python_oracle, python_farm, DIFFERENCES)


def test_coroutines_run_at_once(python_oracle: int, python_farm: int) -> None:
    """Two requests of one decoupled instance wait for one another: each is answered only once both have been started."""

    def ask(port: int) -> Callable[[], tuple[int, bytes]]:
        case = stream("asynchronous_streams", "meet")

        def send() -> tuple[int, bytes]:
            reply = exchange(port, case.method, case.path, case.body)
            return reply.status, reply.body

        return send

    with ThreadPoolExecutor(4) as pool:
        replies = [[pool.submit(ask(port)) for _ in range(2)] for port in (python_oracle, python_farm)]
        theirs, ours = ([future.result() for future in futures] for futures in replies)
    assert ours == theirs
    assert all(status == 200 and body.count(b"meet") == 2 for status, body in ours)
