"""A dispatcher with sequence models, under a clock that is set by hand."""

from __future__ import annotations

import itertools
from typing import Any

from tensorfarm.server.dispatch.delay_hooks import NO_HOOKS, DelayHooks
from tensorfarm.server.dispatch.instance import Instance, PlannedBatch
from tensorfarm.server.dispatch.request import Request
from tensorfarm.server.dispatch.schedulers import scheduler_of
from tensorfarm.server.dispatch.sequence_scheduler import SequenceScheduler
from tensorfarm.server.statistics import VersionStatistics
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.messages import Done, Fault, RequestBody, RequestContext, Result, Tensor
from tensorfarm.workers.contract.signature import signature_of

from .test_dispatcher import Bench

START, END = 1, 2
CONTROLS = """
control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
control_input { name: "END" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ] } }
control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } }
control_input { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
"""
MS = 1_000_000


class SequenceBench(Bench):
    """``model(…)`` makes the one scheduler; ``ask(id, flags)`` queues a request of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self.names: dict[Request, str] = {}
        self._instance_numbers = itertools.count()

    def model(
        self,
        batching: str = "",
        max_batch_size: int = 4,
        instances: int = 1,
        dims: str = "1",
        hooks: DelayHooks = NO_HOOKS,
        controls: str = CONTROLS,
    ) -> SequenceScheduler:
        config = parse_text(
            f'name: "m" max_batch_size: {max_batch_size} input {{ name: "X" data_type: TYPE_INT8 dims: [ {dims} ] }}'
            f" sequence_batching {{ max_sequence_idle_microseconds: 1000000 {controls} {batching} }}",
            "config.pbtxt",
        )
        scheduler = scheduler_of(config, signature_of(config), itertools.count(1), VersionStatistics(), self.warnings.append, hooks)
        assert isinstance(scheduler, SequenceScheduler)
        self.model_scheduler = scheduler
        self.instances = [Instance(next(self._instance_numbers), "m", execution_ns=1000) for _ in range(instances)]
        for instance in self.instances:
            self.dispatcher.instance_up(scheduler, instance)
        self.turn()
        return scheduler

    def sequence_request(self, correlation_id: int | str, flags: int = 0, name: str = "", width: int = 1, timeout_us: int = 0) -> Request:
        tensor = Tensor("X", "INT8", (1, width), Inline(memoryview(bytes(width))))
        context = RequestContext(correlation_id, flags, timeout_us)
        request = Request(RequestBody("", 1, [tensor], [], {}, context), self.now_ns, self.responses.append, timeout_us=timeout_us)
        self.names[request] = name
        return request

    def ask(self, correlation_id: int | str, flags: int = 0, name: str = "", **more: Any) -> Request:
        """Queue a request of a sequence, and let the scheduler decide."""
        request = self.sequence_request(correlation_id, flags, name, **more)
        self.dispatcher.submit(self.model_scheduler, request)
        self.turn()
        return request

    def rows(self, batch: PlannedBatch | None = None) -> list[str]:
        """The names of a batch's requests (the one that is out where there is one), "-" for a filled row."""
        if batch is None:
            (batch,) = self.sent
        return ["-" if index in batch.fillers else self.names[request] for index, request in enumerate(batch.requests)]

    def all_rows(self) -> list[list[str]]:
        """The same of every batch that is out."""
        return [self.rows(batch) for batch in self.sent]

    def run(self) -> list[list[str]]:
        """Have every batch answered until nothing is out any more; returns their rows."""
        seen = []
        while self.sent:
            seen.append(self.rows(self.sent[0]))
            self.finish(self.sent[0])
        return seen

    def finish_again(self, batch: PlannedBatch, again: list[int], fault: Fault | None = None) -> None:
        """A Python model's answer to a batch, some of which it wants once more."""
        self.sent.remove(batch)
        results = [None if index in again else Result([], fault=fault) for index in range(len(batch.requests))]
        times = (self.now_ns, self.now_ns, self.now_ns, self.now_ns + 1000)
        self.dispatcher.batch_done(Done(batch.number, results, *times, [], again), self)
        self.turn()

    def errors(self) -> list[str]:
        """What requests were answered with, "" for no error."""
        return ["" if response.error is None else f"{response.error.code.name} {response.error.message}" for response in self.responses]


def controls(body: RequestBody) -> dict[str, Any]:
    """The values of the control tensors of a request's body."""
    readers = {"INT32": "i", "FP32": "f", "BOOL": "?", "UINT64": "Q"}
    return {
        tensor.name: tensor.place.content.cast("B").cast(readers[tensor.datatype])[0]  # type: ignore[union-attr]
        for tensor in body.inputs
        if tensor.name != "X"
    }
