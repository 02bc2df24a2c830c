"""Demands for models that are loaded when they are first asked: what a model needs, and who waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ...workers.contract.status import Code, StatusError

OnReady = Callable[[StatusError | None], None]
"""Told once: None, and the model is resident and stays so while this runs; or why it is not."""


class NotResident(StatusError):
    """A model that is known but not in memory: ``Service.bring`` has it loaded. Whoever cannot wait answers with it."""

    def __init__(self, name: str) -> None:
        super().__init__(Code.UNAVAILABLE, f"Request for unknown model: '{name}' is not loaded")
        self.name = name


class Changed(StatusError):
    """An ensemble was found to run other models than it was said to when it was wanted: it is to be wanted anew, with these."""

    def __init__(self, name: str) -> None:
        super().__init__(Code.UNAVAILABLE, f"model '{name}' has changed while it was loaded; ask again")
        self.name = name


@dataclass(frozen=True, slots=True)
class Need:
    """A model that somebody wants, about how many bytes it will take (0: not known), and, of an ensemble, the models that it asks."""

    name: str
    byte_size: int = 0
    members: tuple[Need, ...] = ()

    def closure(self) -> dict[str, Need]:
        """Everything that must be resident for it, by name: members before those that ask them, itself last."""
        found: dict[str, Need] = {}
        for member in self.members:
            found.update(member.closure())
        found.pop(self.name, None)
        found[self.name] = self
        return found


class Demand:
    """Somebody who waits for a model. ``caller`` is the model or ensemble whose request waits, "" for a client's."""

    __slots__ = ("_on_ready", "_withdraw", "caller", "wish")

    def __init__(self, caller: str, on_ready: OnReady, withdraw: Callable[[Demand], None]) -> None:
        self.caller = caller
        self.wish: Wish | None = None
        self._on_ready: OnReady | None = on_ready
        self._withdraw: Callable[[Demand], None] | None = withdraw

    @property
    def open(self) -> bool:
        """Neither answered nor cancelled."""
        return self._on_ready is not None

    def answer(self, error: StatusError | None) -> None:
        """Tell whoever waits; nothing where that was done or nobody waits any more."""
        on_ready, self._on_ready = self._on_ready, None
        self._withdraw = None
        if on_ready is not None:
            on_ready(error)

    def cancel(self) -> None:
        """Nobody waits any more; nothing will be told. A load that has begun goes on."""
        withdraw, self._withdraw = self._withdraw, None
        self._on_ready = None
        if withdraw is not None:
            withdraw(self)


class Awaited:
    """A demand that is made anew, once, where the model has changed. ``want`` makes it, ``changed`` hears of the change before."""

    __slots__ = ("_changed", "_demand", "_on_ready", "_want")

    def __init__(self, want: Callable[[OnReady], Demand], changed: Callable[[Changed], None], on_ready: OnReady) -> None:
        self._want = want
        self._changed: Callable[[Changed], None] | None = changed
        self._on_ready: OnReady | None = on_ready
        self._demand: Demand | None = None
        demand = want(self._told)
        if self._demand is None:
            self._demand = demand

    def _told(self, error: StatusError | None) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and isinstance(error, Changed):
            changed(error)
            self._demand = self._want(self._told)
            return
        # Whoever waits may know this object: left alone, a cycle for the collector.
        on_ready, self._on_ready = self._on_ready, None
        if on_ready is not None:
            on_ready(error)

    def cancel(self) -> None:
        """Nobody waits any more; nothing will be told."""
        self._on_ready = None
        if self._demand is not None:
            self._demand.cancel()


@dataclass(slots=True, eq=False)
class Wish:
    """All demands for one model that is to come.

    ``placed`` once everything that it needs has its place; until then it waits for room. ``overtaken`` once a demand of a model has
    been given room before it.
    """

    needs: dict[str, Need]
    demands: dict[Demand, None] = field(default_factory=dict)
    placed: bool = False
    overtaken: bool = False

    @property
    def name(self) -> str:
        """The model that is wanted."""
        return next(reversed(self.needs))

    @property
    def callers(self) -> set[str]:
        """The models and ensembles whose requests wait for it."""
        return {demand.caller for demand in self.demands if demand.caller}

    def add(self, demand: Demand) -> None:
        """One more waits for it."""
        self.demands[demand] = None
        demand.wish = self

    def take(self, callers_only: bool = False) -> list[Demand]:
        """Its demands, or those of models, which leave it."""
        taken = [demand for demand in self.demands if demand.caller or not callers_only]
        for demand in taken:
            del self.demands[demand]
            demand.wish = None
        return taken
