"""Answering a request bit by bit, or later, or from another thread."""

from __future__ import annotations

from .errors import UINT32, TritonModelException, are, incompatible, within
from .host import Responder
from .response import InferenceResponse

FINAL = 1
"""The flag of the last response: TRITONSERVER_RESPONSE_COMPLETE_FINAL."""


class InferenceResponseSender:
    """Sends the responses to one request. A request that a model has made itself has no one to respond to."""

    __slots__ = ("_responder",)

    _responder: Responder | None

    def __init__(self, responder: Responder | None) -> None:
        self._responder = responder
        if responder is not None:
            responder.taken = True

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response, the end of responses (``flags`` 1), or both.

        Raises TritonModelException where there is nothing to send or the responses have ended, TypeError for other types.
        """
        # what a model does for every token
        if response.__class__ is not InferenceResponse and response is not None and not are(InferenceResponse, response):
            raise incompatible("send(response: InferenceResponse = None, flags: int = 0)", response, flags)
        if flags != 0 and flags != FINAL:
            if not within(flags, UINT32):
                raise incompatible("send(response: InferenceResponse = None, flags: int = 0)", response, flags)
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None and flags == 0:
            raise TritonModelException("Inference Response object must be provided when the response flags is set to zero.")
        if self._responder is None:
            raise TritonModelException("Unable to send response. Response sender has no reference to the decoupled state of the model.")
        self._responder.send(response, flags)

    def __del__(self) -> None:
        if self._responder is not None:
            self._responder.dropped()

    def is_cancelled(self) -> bool:
        """Does nobody wait for responses any more?"""
        return self._responder is not None and self._responder.is_cancelled()
