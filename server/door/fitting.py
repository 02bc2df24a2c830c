"""Requests that need not be checked, because others like them were."""

from __future__ import annotations

from ...workers.contract.messages import RequestBody
from ...workers.contract.signature import Signature
from ...workers.contract.validation import plain_batch_size


class Fitting:
    """What the checks of a model said of requests that are the same but for their tensors' content."""

    __slots__ = ("_looked_at", "_plain")

    def __init__(self) -> None:
        self._looked_at: Signature | None = None
        self._plain = False

    def always(self, signature: Signature, body: RequestBody) -> bool:
        """Do all of them pass the checks of ``signature`` as they are, because ``body``, which is one of them, does?

        So it is where names, datatypes, shapes and byte sizes, the same each time, are all that is to be checked.
        """
        if self._looked_at is not signature:
            self._looked_at = signature
            self._plain = not signature.reshapes_inputs and plain_batch_size(signature, body) == body.batch_size
        return self._plain
