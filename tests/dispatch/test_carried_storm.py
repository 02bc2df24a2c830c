"""Requests that are carried, one random thing after the other: each is finished once, holds its regions for long enough, and leaves nothing."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensorfarm.server.dispatch.request import EndMark, Request, Response
from tensorfarm.shm.placement import Lease, Placement, Span
from tensorfarm.workers.contract.messages import Tensor, WantedOutput
from tensorfarm.workers.contract.status import Code, StatusError, internal, unavailable

from .carried_bench import FAR, NEAR, OTHER, SYSTEM, Bench, Fetch, Put, small

SHARE = 64
"""Each request has this much of each region, so that it can be told whose a part of one is."""
REGIONS = [SYSTEM, NEAR, FAR, OTHER]
FAILED = internal("no luck")


class Watched:
    """A request, and what has been heard of it. ``said`` are the marks of the responses that the model has given to it."""

    def __init__(self, request: Request, ordered: bool) -> None:
        self.request = request
        self.ordered = ordered
        self.finishes = 0
        self.final = self.keeps = False
        self.said: list[int] = []
        self.heard: list[Response] = []
        request.on_finish, request.on_response = self.on_finish, self.on_response

    def on_finish(self) -> None:
        assert not self.finishes and (self.keeps or not self.final)
        self.finishes += 1

    def on_response(self, response: Response) -> None:
        assert not self.final, "a response after the last one"
        # Where outputs are inputs, the response keeps them; it is released before it goes on if it has become an error.
        assert self.finishes >= response.final or self.keeps
        # In order, the first of several responses may wait for others until the last is there.
        assert self.finishes <= response.final or self.ordered
        assert response.request is self.request
        self.heard.append(response)
        self.final = response.final


class Storm(RuleBasedStateMachine):
    """A version of GPU 0 with all that can happen to it."""

    @initialize(ordered=st.booleans(), on_gpu=st.booleans())
    def begin(self, ordered: bool, on_gpu: bool) -> None:
        self.bench = Bench("gpu0" if on_gpu else "", ordered=ordered)
        self.ordered = ordered
        self.watched: list[Watched] = []
        self.behind: dict[Request, Watched] = {}
        self.entered: dict[int, list[int]] = {}
        self.marks = 0
        self.told: list[str] = []
        self.bench.carried._enter = self.enter

    def enter(self, request: Request) -> None:
        if self.bench.refusal is not None:
            raise self.bench.refusal
        number = next(number for number, watched in enumerate(self.watched) if watched.request is request)
        sequence = request.body.context.correlation_id if request.body.context else 0
        if sequence:
            assert all(number > earlier for earlier in self.entered.setdefault(int(sequence), [])), "overtaken in its sequence"
            self.entered[int(sequence)].append(number)
        assert not any(isinstance(tensor.place, Span) and self.out_of_reach(tensor.place) for tensor in request.body.inputs)
        assert not any(output.span is not None and self.out_of_reach(output.span) for output in request.body.outputs)
        self.behind[request] = self.watched[number]

    def out_of_reach(self, span: Span) -> bool:
        location = self.bench.mover.where(span)
        return location is not None and not self.bench.carried._takes(location)

    @rule(
        inputs=st.lists(st.sampled_from([0, *REGIONS]), max_size=3),
        outputs=st.lists(st.sampled_from([0, *REGIONS]), max_size=3),
        sequence=st.sampled_from([0, 0, 1, 2]),
        small_span=st.booleans(),
    )
    def submit(self, inputs: list[int], outputs: list[int], sequence: int, small_span: bool) -> None:
        start = len(self.watched) * SHARE
        size = 4 if small_span else 8
        request = self.bench.request(
            *[Span(region, start, 8) if region else small() for region in inputs],
            outputs=tuple(WantedOutput(f"Y{index}", Span(region, start, size) if region else None) for index, region in enumerate(outputs)),
            sequence=sequence,
        )
        watched = Watched(request, self.ordered)
        self.watched.append(watched)
        try:
            self.bench.carried.submit(request)
        except StatusError:
            assert request.on_finish == watched.on_finish and request.on_response == watched.on_response
            assert not watched.heard and not watched.finishes
            self.watched.pop()

    @rule(refused=st.booleans())
    def refuse(self, refused: bool) -> None:
        self.bench.refusal = unavailable("full") if refused else None

    @precondition(lambda self: self.bench.mover.fetches)
    @rule(which=st.integers(0, 50), works=st.booleans())
    def fetch(self, which: int, works: bool) -> None:
        fetches = self.bench.mover.fetches
        fetches.pop(which % len(fetches)).finish(None if works else FAILED)

    @precondition(lambda self: self.bench.mover.puts)
    @rule(which=st.integers(0, 50), works=st.booleans())
    def put(self, which: int, works: bool) -> None:
        puts = self.bench.mover.puts
        puts.pop(which % len(puts)).finish(None if works else FAILED)

    @precondition(lambda self: self.behind)
    @rule(
        which=st.integers(0, 50), final=st.booleans(), made=st.integers(0, 3), how=st.sampled_from(["plain", "plain", "error", "pass on"])
    )
    def answer(self, which: int, final: bool, made: int, how: str) -> None:
        request = list(self.behind)[which % len(self.behind)]
        watched = self.behind[request]
        memory = self.bench.memory
        self.marks += 1
        if final:
            del self.behind[request]
        outputs = [] if how == "error" else [self.bench.output(f"Y{index}") for index in range(made)]
        release = memory.give_back
        copies = [tensor.place for tensor in request.body.inputs if isinstance(tensor.place, Lease)]
        if final and how == "pass on" and copies and not self.ordered:
            finish, request.on_finish = request.on_finish, None
            assert finish is not None
            outputs.append(Tensor("Y3", "UINT8", (8,), copies[0]))
            watched.keeps = True

            def release(leases: list[Lease]) -> None:
                memory.give_back([lease for lease in leases if lease.arena == memory.arena])
                finish()

        elif final and request.on_finish is not None:
            on_finish, request.on_finish = request.on_finish, None
            on_finish()
        watched.said.append(self.marks)
        error = FAILED if how == "error" else None
        request.on_response(Response(request, outputs, {"mark": self.marks}, error, final, memory.view, release))

    @precondition(lambda self: self.behind)
    @rule(which=st.integers(0, 50))
    def end(self, which: int) -> None:
        request = list(self.behind)[which % len(self.behind)]
        watched = self.behind.pop(request)
        on_finish, request.on_finish = request.on_finish, None
        assert on_finish is not None
        on_finish()
        watched.said.append(0)
        request.on_response(EndMark(request, []))

    @precondition(lambda self: self.watched)
    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        watched = self.watched[which % len(self.watched)]
        if not watched.final:
            self.bench.carried.cancel(watched.request)

    @rule()
    def stop(self) -> None:
        if not self.bench.carried.stopping:
            self.bench.carried.stop(lambda: self.told.append("stopped"))
            self.bench.carried.when_idle(lambda: self.told.append("idle"))

    @rule()
    def release(self) -> None:
        for watched in self.watched:
            for response in watched.heard:
                response.release()

    def watched_of(self, place: Placement) -> Watched:
        assert isinstance(place, Span)
        return self.watched[place.offset // SHARE]

    @invariant()
    def what_is_copied_is_held(self) -> None:
        copying: list[Fetch | Put] = [*self.bench.mover.fetches, *self.bench.mover.puts]
        for one in copying:
            for place in one.places if isinstance(one, Fetch) else one.spans:
                watched = self.watched_of(place)
                assert not watched.finishes and not watched.final

    @invariant()
    def responses_come_in_order(self) -> None:
        for watched in self.watched:
            marks = [int(response.parameters.get("mark", 0)) for response in watched.heard]
            if watched.said:
                # Those that could not be put have lost their mark.
                assert all(mark in (0, said) for mark, said in zip(marks, watched.said, strict=False)) and len(marks) <= len(watched.said)
            else:
                assert len(marks) <= 1 and all(response.error is not None for response in watched.heard)
            if watched.final and watched.request.cancelled and not watched.said:
                error = watched.heard[-1].error
                assert error is not None and error.code is Code.CANCELLED
        if self.ordered:
            open_ones = [watched for watched in self.watched if not watched.request.cancelled]
            begun = [bool(watched.heard) for watched in open_ones]
            ended = [watched.final for watched in open_ones]
            assert all(all(ended[:index]) for index, has in enumerate(begun) if has)

    @invariant()
    def everything_is_counted_once(self) -> None:
        carried = self.bench.carried
        assert carried.in_flight == self.bench.flow.in_flight
        assert carried.in_flight >= self.bench.statistics.pending_count >= 0
        if not self.ordered:
            assert carried.in_flight + len(self.behind) == sum(not watched.final for watched in self.watched)
        if "idle" in self.told:
            assert carried.idle and self.told[0] == "stopped"

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.bench.refusal = None
        self.stop()
        while self.bench.mover.fetches or self.behind or self.bench.mover.puts:
            if self.bench.mover.fetches:
                self.fetch(0, True)
            elif self.behind:
                self.answer(0, True, 2, "plain")
            else:
                self.put(0, True)
            self.what_is_copied_is_held()
        self.responses_come_in_order()
        self.release()
        assert all(watched.final and watched.finishes == 1 for watched in self.watched)
        assert self.told == ["stopped", "idle"]
        self.bench.check_empty()


Storm.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestStorm = Storm.TestCase
