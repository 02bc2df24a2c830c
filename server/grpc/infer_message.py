"""A ``ModelInferRequest`` as it was received: taken apart, its raw tensors left where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from ...shm.placement import Placement
from ..door.body import ArenaBody, Body
from .protocol import Unparsable, messages
from .wire import Unreadable, cut_out

if TYPE_CHECKING:
    from .infer_plan import Plan

_ID, _RAW_INPUT_CONTENTS = 3, 7
_CUT_OUT = frozenset((_ID, _RAW_INPUT_CONTENTS))
_MOST_FIELDS = 8192
"""Inputs, outputs, parameters and tensors of one request: beyond that, going through them would take longer than others may wait."""


class InferMessage:
    """The request. ``rest`` is the message but for its id and raw tensors, ``sizes`` are those of the tensors in bytes.

    It owns its body until it is released. ``envelope`` is the rest as a message, None where ``plan`` knows what that says.
    """

    __slots__ = ("_body", "_places", "envelope", "id", "large", "plan", "rest", "sizes")

    def __init__(self, body: Body) -> None:
        """Takes ``body`` over; raises Unparsable where it is no message, and then it has been released."""
        try:
            self.rest, cut = cut_out(body.view, _CUT_OUT, _MOST_FIELDS)
            self.id = ""
            for number, start, stop in cut:
                if number == _ID:
                    self.id = str(body.view[start:stop], "utf-8")
        except (Unreadable, UnicodeDecodeError):
            body.release()
            raise Unparsable from None
        self._body: Body | None = body
        self._places = [(start, stop) for number, start, stop in cut if number == _RAW_INPUT_CONTENTS]
        self.sizes = tuple([stop - start for start, stop in self._places])
        self.large = type(body) is ArenaBody
        self.plan: Plan | None = None
        self.envelope: Any = None

    def parse(self) -> None:
        """Make the envelope. Raises Unparsable where there is none, and then the body has been released."""
        envelope = messages.ModelInferRequest()
        try:
            envelope.ParseFromString(self.rest)
        except DecodeError:
            self.release()
            raise Unparsable from None
        self.envelope = envelope

    @property
    def model(self) -> str:
        """The name of the model that is asked."""
        return str(self.envelope.model_name) if self.plan is None else self.plan.model

    @property
    def version(self) -> str:
        """Which version of it, as the client says it."""
        return str(self.envelope.model_version) if self.plan is None else self.plan.version

    def place(self, index: int) -> Placement:
        """Where one of the raw tensors lies."""
        assert self._body is not None
        start, stop = self._places[index]
        return self._body.place(start, stop)

    def release(self) -> None:
        """Give its memory back; nobody reads it any more."""
        body, self._body = self._body, None
        if body is not None:
            body.release()
