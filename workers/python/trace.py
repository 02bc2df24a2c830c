"""The trace that a request is part of."""

from __future__ import annotations


class InferenceTrace:
    """Hand it to an InferenceRequest, and that request's trace is a child of this one."""

    __slots__ = ("context",)

    def __init__(self, context: str = "") -> None:
        self.context = context

    def get_context(self) -> str | None:
        """What a tracer propagates, as JSON text; None where the request is not traced."""
        return self.context or None
