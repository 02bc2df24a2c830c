"""What a front end asks and submits, and what comes of it in the server process: each answered once, whatever goes wrong between."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

from tensorfarm.server.admission import Overloaded
from tensorfarm.server.dispatch.request import EndMark, Rejection, Response
from tensorfarm.server.front_end.messages import AnsweredHttp, Forget, Forgotten, Release, Submit
from tensorfarm.server.http.load_metrics import FAMILY
from tensorfarm.server.prometheus_text import Family
from tensorfarm.server.repository.demand import NotResident
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.messages import Tensor, WantedOutput
from tensorfarm.workers.contract.status import StatusError, internal, invalid, unavailable

from .linked import CONFIG, Asked, Linked, Version, answered, known


def run(script: Coroutine[Any, Any, None]) -> None:
    """Run a test's script."""
    asyncio.run(asyncio.wait_for(script, 10))


def outputs(place: Any) -> list[Tensor]:
    return [Tensor("OUT", "INT32", (1,), place)]


def test_a_model_is_asked_for_once_and_known_until_it_may_be_another() -> None:
    async def script() -> None:
        linked = Linked()
        version = known(linked)
        assert (version.name, version.version, version.number) == ("m", 1, 1)
        assert version.signature == linked.main.serving.signature and version.labels == linked.main.serving.labels
        said = len(linked.to_main)
        assert known(linked) is version and len(linked.to_main) == said
        linked.main.serving = Version(2)
        linked.session.tell(Forget(7))
        linked.pump()
        assert linked.to_main[-1] == Forgotten(7)
        assert known(linked).number == 2

    run(script())


def test_a_model_that_is_not_there_is_asked_for_each_time() -> None:
    async def script() -> None:
        linked = Linked()
        for _ in range(2):
            with pytest.raises(NotResident) as absent:
                linked.front.find("x")
            answers: list[StatusError | None] = []
            linked.front.bring(absent.value, answers.append)
            linked.pump()
            (error,) = answers
            assert error is not None and error.message == "Request for unknown model: 'x' is not found"

    run(script())


def test_a_model_that_has_to_be_loaded_first() -> None:
    async def script() -> None:
        linked = Linked()
        linked.main.absent = True
        with pytest.raises(NotResident) as absent:
            linked.front.find("m")
        answers: list[StatusError | None] = []
        linked.front.bring(absent.value, answers.append)
        linked.front.bring(absent.value, answers.append).cancel()
        linked.front.bring(absent.value, answers.append)
        linked.pump()
        first, second, last = linked.main.waiting
        assert second.cancelled and not first.cancelled
        linked.main.absent = False
        first.on_ready(None)
        last.on_ready(unavailable("no room"))
        linked.pump()
        assert [None if answer is None else answer.message for answer in answers] == [None, "no room"]
        assert linked.front.find("m").number == 1

    run(script())


def test_an_inference_and_its_response() -> None:
    async def script() -> None:
        linked = Linked()
        asked = Asked()
        linked.front.submit(known(linked), asked.request(1, 2))
        linked.pump()
        (request,) = linked.main.serving.entered
        place = request.body.inputs[0].place
        assert isinstance(place, Inline) and bytes(place.content) == b"\1\0\0\0\2\0\0\0"
        assert (request.start_ns, request.arenas, request.body.id) == (5, (), "id")
        assert request.on_finish is not None
        request.on_finish()
        request.on_response(Response(request, outputs(Inline(memoryview(b"\3\0\0\0")))))
        await linked.settle()
        (response,) = asked.responses
        assert bytes(response.read(response.outputs[0])) == b"\3\0\0\0" and response.final and asked.finished == 1
        response.release()
        assert not any(isinstance(message, Release) for message in linked.to_main)
        assert (linked.front.in_flight, linked.session.in_flight) == (0, 0)

    run(script())


def test_large_tensors_lie_in_arenas_and_are_given_back() -> None:
    async def script() -> None:
        linked = Linked()
        asked = Asked()
        block = linked.arena.reserve(8)
        block.view[:] = b"\1\0\0\0\2\0\0\0"
        linked.front.submit(known(linked), asked.request(place=block.place(0, 8)))
        linked.pump()
        (request,) = linked.main.serving.entered
        assert request.arenas == (linked.arena.number,)
        released: list[list[Lease]] = []
        # What it was sent comes back, so that nothing is finished before it is released.
        lease = block.place(0, 4)
        mixed = [*outputs(Lease(9, 0, 4)), *outputs(lease)]
        request.on_response(Response(request, mixed, on_release=released.append))
        await linked.settle()
        assert linked.shared == [9] and asked.finished == 0 and released == []
        (response,) = asked.responses
        assert bytes(response.read(response.outputs[1])) == b"\1\0\0\0"
        response.release()
        response.release()
        linked.pump()
        assert released == [[Lease(9, 0, 4), lease]]
        assert request.on_finish is not None
        request.on_finish()
        await linked.settle()
        assert asked.finished == 1 and linked.front.in_flight == 0

    run(script())


def test_many_responses_and_the_mark_of_their_end() -> None:
    async def script() -> None:
        linked = Linked()
        linked.main.serving = Version(config=CONFIG + "model_transaction_policy { decoupled: true }")
        asked = Asked()
        version = known(linked)
        assert version.signature.decoupled
        mine = asked.request(1)
        linked.front.submit(version, mine)
        linked.front.hold(version, mine, True)
        linked.front.hold(version, mine, False)
        linked.pump()
        (request,) = linked.main.serving.entered
        assert linked.main.serving.held == [(request, True), (request, False)]
        for value in (b"\1\0\0\0", b"\2\0\0\0"):
            request.on_response(Response(request, outputs(Inline(memoryview(value))), {"n": 1}, final=False))
        request.on_response(Response(request, [], error=invalid("no"), final=False))
        assert request.on_finish is not None
        request.on_finish()
        request.on_response(EndMark(request, []))
        linked.front.hold(version, mine, True)
        await linked.settle()
        assert [type(one) for one in asked.responses] == [Response, Response, Response, EndMark]
        assert [one.final for one in asked.responses] == [False, False, False, True]
        assert asked.responses[0].parameters == {"n": 1} and asked.errors == ["no"] and asked.finished == 1
        said = len(linked.to_main)
        linked.front.hold(version, mine, False)
        assert len(linked.to_main) == said and linked.front.in_flight == 0

    run(script())


def test_what_the_checks_find_is_told_at_once() -> None:
    async def script() -> None:
        linked = Linked()
        version = known(linked)
        said = len(linked.to_main)
        asked = Asked()
        request = asked.request(1)
        request.body.inputs.append(request.body.inputs[0])
        with pytest.raises(StatusError):
            linked.front.submit(version, request)
        assert len(linked.to_main) == said and asked.finished == 0

    run(script())


@pytest.mark.parametrize("error", [invalid("no"), Overloaded("too many", 3)])
def test_an_inference_that_is_refused_on_entry(error: StatusError) -> None:
    async def script() -> None:
        linked = Linked()
        linked.main.serving.refusal = error
        asked = Asked()
        linked.front.submit(known(linked), asked.request(1))
        linked.pump()
        (response,) = asked.responses
        assert type(response) is Rejection and asked.finished == 1
        assert response.error is not None and type(response.error) is type(error)
        assert (response.error.code, response.error.message) == (error.code, error.message)
        if isinstance(response.error, Overloaded):
            assert response.error.retry_after_s == 3
        assert (linked.front.in_flight, linked.session.in_flight) == (0, 0)

    run(script())


def test_a_fault_of_the_server_process_is_told_too() -> None:
    async def script() -> None:
        linked = Linked()
        version = known(linked)
        asked = Asked()
        linked.main.serving.enter = None  # type: ignore[assignment, method-assign]
        linked.front.submit(version, asked.request(1))
        with pytest.raises(TypeError):
            linked.pump()
        linked.pump()
        assert asked.errors == ["internal error"] and asked.finished == 1

    run(script())


def test_a_client_that_goes() -> None:
    async def script() -> None:
        linked = Linked()
        version = known(linked)
        asked = Asked()
        mine = asked.request(1)
        linked.front.submit(version, mine)
        linked.pump()
        linked.front.cancel(version, mine)
        linked.front.cancel(version, mine)
        (request,) = linked.main.serving.entered
        # This one was on its way by then.
        late: list[list[Lease]] = []
        request.on_response(Response(request, outputs(Lease(9, 0, 4)), final=False, on_release=late.append))
        await linked.settle()
        assert linked.main.serving.withdrawn == [request] and asked.responses == [] and asked.finished == 0
        assert late == [[Lease(9, 0, 4)]]
        request.on_response(Response(request, outputs(Lease(9, 4, 4)), on_release=late.append))
        assert request.on_finish is not None
        request.on_finish()
        await linked.settle()
        assert asked.responses == [] and asked.finished == 1 and len(late) == 2
        assert (linked.front.in_flight, linked.session.in_flight) == (0, 0)

    run(script())


def test_a_model_that_is_another_by_the_time_a_request_comes() -> None:
    async def script() -> None:
        linked = Linked()
        old = known(linked)
        linked.main.serving = Version(2)
        asked = Asked()
        linked.front.submit(old, asked.request(1))
        linked.pump()
        assert len(linked.main.serving.entered) == 1
        linked.main.serving = Version(3, CONFIG.replace('"IN"', '"OTHER"'))
        linked.front.submit(old, asked.request(1))
        linked.pump()
        assert linked.main.serving.entered == [] and "unexpected inference input 'IN'" in asked.errors[0]
        linked.main.serving = Version(4, CONFIG + "model_transaction_policy { decoupled: true }")
        linked.front.submit(old, asked.request(1))
        linked.pump()
        assert linked.main.serving.entered == [] and asked.errors[1] == "model 'm' was changed while the request was read; send it again"

    run(script())


def test_a_model_that_has_left_by_the_time_a_request_comes() -> None:
    async def script() -> None:
        linked = Linked()
        version = known(linked)
        linked.main.absent = True
        asked, gone, refused = Asked(), Asked(), Asked()
        mine = gone.request(2)
        linked.front.submit(version, asked.request(1))
        linked.front.submit(version, mine)
        linked.front.submit(version, refused.request(1))
        linked.pump()
        linked.front.cancel(version, mine)
        await linked.settle()
        first, second, third = linked.main.waiting
        assert second.cancelled and gone.finished == 1
        linked.main.absent = False
        first.on_ready(None)
        third.on_ready(unavailable("no room"))
        linked.pump()
        assert len(linked.main.serving.entered) == 1 and refused.errors == ["no room"]

    run(script())


def test_regions_are_found_by_the_server_process() -> None:
    async def script() -> None:
        linked = Linked()
        version = known(linked)
        asked = Asked()
        regions = linked.front.regions_for(True)
        spans = [regions.span("r", 4, 8), regions.span("s", 2**64 - 1, 8)]
        for offset, byte_size in ((2**64, 8), (0, 2**64)):
            with pytest.raises(StatusError, match="Invalid offset for shared memory region: 's'"):
                regions.span("s", offset, byte_size)
        linked.front.submit(version, asked.request(place=spans[0], outputs=[WantedOutput("OUT", regions.span("r", 0, 8))]))
        message = linked.to_main[-1]
        assert isinstance(message, Submit) and list(message.regions.values()) == ["r", "r"]
        linked.pump()
        assert asked.errors == ["Unable to find shared memory region: 'r'"] and type(asked.responses[0]) is Rejection
        asked = Asked()

        class Regions:
            def span(self, name: str, offset: int, byte_size: int) -> Span:
                return Span({"r": 70, "t": 71}[name], offset, byte_size)

        linked.main.regions = Regions()  # type: ignore[assignment]
        linked.front.submit(version, asked.request(place=spans[0], outputs=[WantedOutput("OUT", regions.span("t", 0, 8))]))
        linked.pump()
        (request,) = linked.main.serving.entered
        assert request.body.inputs[0].place == Span(70, 4, 8) and request.body.outputs[0].span == Span(71, 0, 8)
        assert linked.main.used == [(70, 71)]

    run(script())


def test_names_of_regions_cost_nothing_afterwards() -> None:
    async def script() -> None:
        linked = Linked()
        version = known(linked)
        tracemalloc.start()
        try:
            for number in range(20):
                asked = Asked()
                linked.front.submit(version, asked.request(place=linked.front.regions_for(True).span(f"{number}" * 500_000, 0, 8)))
                linked.pump()
                assert asked.finished == 1 and len(asked.errors) == 1
                asked.responses.clear()
                linked.to_main.clear()
                linked.to_front.clear()
                linked.start_over()
            assert tracemalloc.get_traced_memory()[0] < 4_000_000
        finally:
            tracemalloc.stop()

    run(script())


def test_clients_elsewhere_know_of_no_regions() -> None:
    async def script() -> None:
        with pytest.raises(StatusError, match="Unable to find shared memory region: 'r'"):
            Linked().front.regions_for(False).span("r", 0, 1)

    run(script())


def test_http_requests_that_are_no_inference() -> None:
    async def script() -> None:
        linked = Linked()
        answers: list[AnsweredHttp] = []
        headers = [(b"a", b"1"), (b"b", b"\xff")]
        linked.front.ask_http("POST", "/v2/x", "q=1", headers, b"body", True, answers.append)
        asking = linked.front.ask_http("GET", "/v2/y", "", [], b"", False, answers.append)
        linked.pump()
        (request, answer), (other, answer_other) = linked.http.asked
        head = request.head
        assert (head.method, head.path, head.query, head.headers) == ("POST", "/v2/x", "q=1", headers)
        assert bytes(request.body.view) == b"body" and request.peer_is_local and not other.peer_is_local
        answer(answered(404, b"no"))
        asking.cancel()
        linked.pump()
        assert linked.http.gone == 1
        answer_other(answered(200, b"too late"))
        linked.pump()
        ((status, heard, body),) = [(one.status, one.headers, one.body) for one in answers]
        assert (status, heard, body) == (404, [(b"Content-Type", b"text/plain")], b"no")

    run(script())


def test_grpc_calls_that_are_no_inference() -> None:
    async def script() -> None:
        linked = Linked()
        stopped: list[bool] = []

        async def answer(content: bytes, peer_is_local: bool) -> bytes:
            if content == b"bad":
                raise invalid("no")
            if content == b"bug":
                raise RuntimeError
            if content == b"long":
                try:
                    await asyncio.sleep(100)
                except asyncio.CancelledError:
                    stopped.append(True)
                    raise
            return content + b"!" * peer_is_local

        linked.rpc["/s/m"] = answer
        messages: list[bytes] = []
        errors: list[StatusError] = []
        for content in (b"good", b"bad", b"bug"):
            linked.front.ask_rpc("/s/m", content, True, messages.append, errors.append)
        asking = linked.front.ask_rpc("/s/m", b"long", True, messages.append, errors.append)
        await linked.settle()
        asking.cancel()
        await linked.settle()
        assert messages == [b"good!"] and stopped == [True]
        assert [(error.code, error.message) for error in errors] == [
            (error.code, error.message) for error in (invalid("no"), internal("internal error"))
        ]

    run(script())


def test_metrics_that_replies_may_tell_come_before_them() -> None:
    async def script() -> None:
        linked = Linked()
        version = known(linked)
        seen: list[list[tuple[dict[str, str], float]] | None] = []

        def look(response: Response) -> None:
            family = linked.front.custom_family(FAMILY)
            seen.append(None if family is None else [(dict(sample.labels), sample.value) for sample in family.samples])

        for value in (None, 1.0, 1.0, 2.0, None):
            family = None if value is None else Family(FAMILY, "gauge", "")
            if family is not None and value is not None:
                family.add({"kv_cache_block_type": "used"}, value)
            linked.main.family = family
            asked = Asked().request(1)
            asked.on_response = look
            linked.front.submit(version, asked)
            linked.pump()
            request = linked.main.serving.entered.pop()
            request.on_response(Response(request, []))
            linked.pump()
        label = {"kv_cache_block_type": "used"}
        assert seen == [None, [(label, 1.0)], [(label, 1.0)], [(label, 2.0)], None]
        assert sum(type(message).__name__ == "Measured" for message in linked.to_front) == 3

    run(script())


def test_a_front_end_that_dies_leaves_nothing() -> None:
    async def script() -> None:
        linked = Linked()
        version = known(linked)
        first, second = Asked(), Asked()
        linked.front.submit(version, first.request(1))
        linked.front.submit(version, second.request(1))
        linked.front.ask_http("GET", "/v2", "", [], b"", True, lambda answer: None)
        linked.pump()
        one, other = linked.main.serving.entered
        released: list[list[Lease]] = []
        one.on_response(Response(one, outputs(Lease(9, 0, 4)), on_release=released.append))
        linked.session.end()
        assert linked.main.serving.withdrawn == [other] and released == [[Lease(9, 0, 4)]] and linked.http.gone == 1
        told = len(linked.to_front)
        other.on_response(Response(other, outputs(Lease(9, 4, 4)), on_release=released.append))
        assert other.on_finish is not None
        other.on_finish()
        await asyncio.sleep(0)
        assert len(released) == 2 and len(linked.to_front) == told and linked.session.in_flight == 0

    run(script())


def test_large_outputs_in_ordinary_memory_are_copied_once_for_all() -> None:
    """As a response cache has them: front ends read them where they are put."""

    async def script() -> None:
        linked = Linked()
        version = known(linked)
        used = linked.main.arena.used_byte_size
        content = memoryview(bytes(range(256)) * 1024)
        asked = [Asked() for _ in range(3)]
        for one in asked:
            linked.front.submit(version, one.request(1))
            linked.pump()
            request = linked.main.serving.entered.pop()
            request.on_response(Response(request, [*outputs(Inline(content[:64])), *outputs(Inline(content))]))
        linked.pump()
        block = linked.main.arena.used_byte_size - used
        assert 256 * 1024 <= block < 300 * 1024
        places = [one.responses[0].outputs[1].place for one in asked]
        assert isinstance(places[0], Lease) and places == [places[0]] * 3
        assert bytes(linked.main.arena.view(places[0])) == bytes(content)
        for left, one in zip((2, 1, 0), asked, strict=True):
            one.responses[0].release()
            linked.pump()
            assert (linked.main.arena.used_byte_size - used > 0) == bool(left)

    run(script())


def test_a_response_that_cannot_be_told() -> None:
    """An integer that no message has room for: the client hears something, and memory comes back."""

    async def script() -> None:
        linked = Linked()
        asked = Asked()
        linked.front.submit(known(linked), asked.request(1))
        linked.pump()
        request = linked.main.serving.entered.pop()
        released: list[list[Lease]] = []
        told = linked.session.tell

        def tell(message: Any) -> None:
            msgspec.msgpack.encode(message)
            told(message)

        linked.session.tell = tell
        with pytest.raises(OverflowError):
            request.on_response(Response(request, outputs(Lease(9, 0, 4)), {"n": 2**70}, on_release=released.append))
        await linked.settle()
        assert asked.errors == ["internal error"] and released == [[Lease(9, 0, 4)]] and linked.session.in_flight == 0

    run(script())


def test_a_client_that_takes_nothing_while_its_model_is_loaded() -> None:
    async def script() -> None:
        linked = Linked()
        version = known(linked)
        linked.main.absent = True
        mine = Asked().request(1)
        linked.front.submit(version, mine)
        linked.front.hold(version, mine, True)
        linked.pump()
        linked.main.absent = False
        linked.main.waiting[0].on_ready(None)
        (request,) = linked.main.serving.entered
        assert linked.main.serving.held == [(request, True)]

    run(script())
