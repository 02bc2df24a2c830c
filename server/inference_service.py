"""What doors ask of the server to run inferences: the same where the doors are in the server's process, and where they are not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from ..shm.arena import Arena
from ..shm.placement import Lease, Span
from ..workers.contract.messages import RequestBody, Tensor, WantedOutput
from ..workers.contract.signature import Signature
from ..workers.contract.status import StatusError
from ..workers.contract.validation import validate
from .admission import Admission, Counters
from .dispatch.request import Request
from .door.scratch import Regions
from .options import Options
from .prometheus_text import Family
from .repository.demand import NotResident, OnReady


class Version(Protocol):
    """A version of a model that can be asked; ``repository.version.ModelVersion`` says what each member means."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def signature(self) -> Signature: ...
    @property
    def labels(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def ensemble(self) -> object | None: ...
    @property
    def statistics(self) -> Counters: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def stopping(self) -> bool: ...
    def enter(self, request: Request, /) -> None: ...
    def withdraw(self, request: Request, /) -> None: ...
    def hold(self, request: Request, held: bool, /) -> None: ...


class Wait(Protocol):
    """Somebody who waits for a model."""

    def cancel(self) -> None:
        """Nobody waits any more; nothing will be told."""


def regions_of(body: RequestBody) -> tuple[int, ...]:
    """The regions that a request uses, by number."""
    regions = [tensor.place.region for tensor in body.inputs if isinstance(tensor.place, Span)]
    regions += [output.span.region for output in body.outputs if output.span is not None]
    return tuple(regions)


def with_spans(body: RequestBody, change: Callable[[Span], Span]) -> RequestBody:
    """The body with each part of a region that it uses as ``change`` gives it."""

    def input_of(tensor: Tensor) -> Tensor:
        place = tensor.place
        return msgspec.structs.replace(tensor, place=change(place)) if isinstance(place, Span) else tensor

    def output_of(output: WantedOutput) -> WantedOutput:
        return output if output.span is None else msgspec.structs.replace(output, span=change(output.span))

    inputs, outputs = [input_of(tensor) for tensor in body.inputs], [output_of(output) for output in body.outputs]
    return msgspec.structs.replace(body, inputs=inputs, outputs=outputs)


class InferenceService(ABC):
    """Finds models, checks requests and queues them. Loop thread only; every refusal is a StatusError."""

    def __init__(self, options: Options, arena: Arena, admission: Admission) -> None:
        self.options = options
        self.arena = arena
        self.admission = admission

    @abstractmethod
    def find(self, name: str, version: str = "") -> Version:
        """The version of a model that a request means; the newest ready one where it says none.

        Raises StatusError: NOT_FOUND, or UNAVAILABLE for a version that is not ready; NotResident where ``bring`` gets it.
        """

    @abstractmethod
    def bring(self, absent: NotResident, on_ready: OnReady, caller: str = "") -> Wait:
        """Get what ``find`` has not found at hand. May raise StatusError."""

    @abstractmethod
    def view(self, lease: Lease) -> memoryview:
        """The bytes of a lease, in whatever arena. Raises StatusError where its process has gone."""

    @abstractmethod
    def custom_family(self, name: str) -> Family | None:
        """A family of metrics that a model has made, as it is now."""

    def current(self, version: Version, asked: str) -> Version:
        """What a request goes to that found ``version`` a while ago, when it asked for ``asked``. Raises what ``find`` raises."""
        return version if not version.stopping else self.find(version.name, asked)

    def client_shm_allowed(self, peer_is_local: bool) -> bool:
        """May this peer register shared memory? Where no flag says so: if it shares our memory at all."""
        allowed = self.options.allow_client_shm
        return peer_is_local if allowed is None else allowed

    @abstractmethod
    def regions_for(self, peer_is_local: bool) -> Regions:
        """The regions that a client may know of: their names are all it takes to read and write them."""

    def submit(self, version: Version, request: Request) -> None:
        """Check a request that enters by a door and queue it; its responses come by ``request.on_response``.

        Raises StatusError, Overloaded where no more may enter, and then nothing is called back, ``request.on_finish`` included.
        """
        admission = self.admission
        if admission.flow.in_flight >= admission.most or admission.per_model:
            admission.check(version)
        self._submit(version, request)

    def _submit(self, version: Version, request: Request) -> None:
        """As ``submit``, for a request that comes from inside: what it belongs to has entered already."""
        request.body = validate(version.signature, request.body, self.view)
        inputs = request.body.inputs
        request.arenas = tuple([tensor.place.arena for tensor in inputs if type(tensor.place) is Lease and tensor.place.arena])
        regions = regions_of(request.body)
        if regions:
            self._hold(request, regions)
        try:
            version.enter(request)
        except StatusError:
            self._let_go(request.regions)
            raise

    def submit_checked(self, version: Version, request: Request) -> None:
        """As ``submit``, for a request without regions of which it is known that ``validate`` passes it as it is."""
        admission = self.admission
        if admission.flow.in_flight >= admission.most or admission.per_model:
            admission.check(version)
        version.enter(request)

    @abstractmethod
    def _hold(self, request: Request, regions: tuple[int, ...]) -> None:
        """A request uses these regions until it is finished, or ``_let_go`` is asked. Raises StatusError."""

    @abstractmethod
    def _let_go(self, regions: tuple[int, ...]) -> None:
        """It was not queued."""

    def cancel(self, version: Version, request: Request) -> None:
        """The client has gone: nobody waits for this request's responses any more."""
        version.withdraw(request)

    def hold(self, version: Version, request: Request, held: bool) -> None:
        """The client takes no more of this request's responses for now, or takes them again; those of an ensemble come all the same."""
        version.hold(request, held)
