"""What models say to the server beside their answers: calls to other models, log lines, custom metrics, questions."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ..workers.contract.messages import (
    AskLoad,
    AskReady,
    AskUnload,
    Call,
    CancelCall,
    Fault,
    Forget,
    Measure,
    OpenFamily,
    OpenMetric,
    ReadMetric,
    Release,
    Reply,
    Say,
    Spoken,
)
from ..workers.contract.status import StatusError, invalid
from .calls import ModelCalls
from .custom_metrics import CustomMetrics
from .farm.child_process import ChildProcess
from .log import Log
from .service import Service

_DIGITS = 18
"""Of a version: more do not fit into 64 bits."""


class ModelTalk:
    """Hears what comes, and replies to questions; ``spawn`` runs the work of those that take time."""

    def __init__(
        self,
        service: Service,
        calls: ModelCalls,
        metrics: CustomMetrics,
        log: Log,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._spawn = spawn
        self._service = service
        self._calls = calls
        self._metrics = metrics
        self._log = log

    def heard(self, message: Spoken, process: ChildProcess) -> None:
        """Do what a model in ``process`` says."""
        if isinstance(message, Call):
            self._calls.call(message, process)
        elif isinstance(message, Release):
            self._calls.release(message, process)
        elif isinstance(message, CancelCall):
            self._calls.cancel(message, process)
        elif isinstance(message, Say):
            self._say(message, process)
        elif isinstance(message, Measure):
            try:
                self._metrics.measure(process, message)
            except StatusError as error:
                # Nobody waits for an answer to it.
                self._log.warning(f"a custom metric of worker '{process.name}' was not changed: {error.message}")
        elif isinstance(message, Forget):
            self._metrics.forget(process, message)
        elif isinstance(message, AskLoad | AskUnload):
            self._spawn(self._control(message, process))
        elif isinstance(message, OpenFamily | OpenMetric | ReadMetric | AskReady):
            try:
                reply = Reply(message.question, self._reply(message, process))
            except StatusError as error:
                reply = Reply(message.question, None, Fault(error.code, error.message))
            process.send(reply)

    async def _control(self, question: AskLoad | AskUnload, process: ChildProcess) -> None:
        reply = Reply(question.question)
        try:
            if isinstance(question, AskLoad):
                parameters: dict[str, object] = {"config": question.config} if question.config else {}
                await self._service.load(question.model, parameters | question.files)
            else:
                await self._service.unload(question.model, question.unload_dependents)
        except StatusError as error:
            reply = Reply(question.question, None, Fault(error.code, error.message))
        if process.returncode is None:
            process.send(reply)

    def _reply(self, question: OpenFamily | OpenMetric | ReadMetric | AskReady, process: ChildProcess) -> bool | int | float | None:
        if isinstance(question, OpenFamily):
            return self._metrics.open_family(process, question)
        if isinstance(question, OpenMetric):
            return self._metrics.open_metric(process, question)
        if isinstance(question, ReadMetric):
            return self._metrics.read(process, question)
        return self._ready(question)

    def _ready(self, question: AskReady) -> bool:
        version = question.version
        if version and not (version.isascii() and version.isdigit() and len(version) <= _DIGITS):
            raise invalid(
                f"failed to get model version from specified version string '{version}' (details: stol), "
                "version should be an integral value > 0"
            )
        try:
            return self._service.version_ready(question.model, question.version)
        except StatusError:
            return False

    def _say(self, message: Say, process: ChildProcess) -> None:
        if self._log.takes(message.severity):
            severity = "I" if message.severity == "V" else message.severity
            self._log.record(severity, message.text, f"{message.file}:{message.line}", process.pid)

    def gone(self, process: ChildProcess) -> None:
        """A worker has ended."""
        self._calls.gone(process)
        self._metrics.drop_owner(process)
