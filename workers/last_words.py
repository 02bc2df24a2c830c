"""How a worker ends itself and says why: over the lifeline, which the server reads when the worker has gone."""

from __future__ import annotations

import os
import socket
import sys
from typing import NoReturn

import msgspec

from .contract.messages import LastWords

EXIT_CODE = 1
MOST_CHARACTERS = 500

_lifelines: list[socket.socket] = []


def speak_over(lifeline: socket.socket) -> None:
    """Have the reason go over this lifeline."""
    _lifelines.append(lifeline)


def end_because(reason: str) -> NoReturn:
    """End this process at once, from any thread, whatever the others do."""
    print(reason, file=sys.stderr, flush=True)
    content = msgspec.msgpack.Encoder().encode(LastWords(reason[:MOST_CHARACTERS]))
    for lifeline in _lifelines:
        try:
            lifeline.send(content, socket.MSG_DONTWAIT)
        except OSError as error:
            print(f"the server could not be told: {error}", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
