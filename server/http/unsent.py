"""What a client has not taken yet of the replies that were written to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..admission import Admission


class Unsent:
    """The unsent bytes of one connection: held by the server (`Admission`), and to become fewer as time goes by."""

    __slots__ = ("_admission", "_byte_size", "_seen")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._byte_size = 0
        self._seen = False

    def begin(self, byte_size: int) -> None:
        """So many bytes have not left, where all had before."""
        self._seen = False
        self.add(byte_size)

    def add(self, byte_size: int) -> None:
        """So many more were written behind them."""
        self._byte_size += byte_size
        self._admission.hold(byte_size)

    def moves(self, byte_size: int, progress_byte_size: int) -> bool:
        """Now it is ``byte_size``: is that progress? Whoever asks for the first time is told so; else nothing is taken note of."""
        if self._seen and self._byte_size - byte_size < progress_byte_size:
            return False
        self.end()
        self.begin(byte_size)
        self._seen = True
        return True

    def end(self) -> None:
        """All has left, or never will."""
        self._admission.let_go(self._byte_size)
        self._byte_size = 0
