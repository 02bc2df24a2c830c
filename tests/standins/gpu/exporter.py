"""A client's process with memory on a GPU that is made of ordinary memory: as a program, and what starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


class Exporter:
    """The process; it has ended when it is closed. Allocations go by their addresses there."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # our own program, arguments as a list
            [sys.executable, "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **variables},
            text=True,
        )

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def allocate(self, byte_size: int, content: bytes = b"", device: int = 0) -> tuple[int, bytes]:
        """The address of new memory with this at its start, and its handle."""
        address, handle = self._ask("allocate", byte_size, content.hex(), device)
        return address, bytes.fromhex(handle)

    def read(self, address: int, byte_size: int) -> bytes:
        """A copy of memory."""
        return bytes.fromhex(self._ask("read", address, byte_size))

    def free(self, address: int) -> None:
        """Give it back."""
        self._ask("free", address)

    def _ask(self, *question: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=20)


def main() -> None:
    """Do what the lines of the standard input say, until it ends."""
    from ctypes import addressof, create_string_buffer

    from cupy.cuda import runtime

    def copy(destination: int, source: int, byte_size: int) -> None:
        runtime.memcpyAsync(destination, source, byte_size, runtime.memcpyDefault, 0)
        runtime.streamSynchronize(0)

    for line in sys.stdin:
        answer: Any = None
        match json.loads(line):
            case ["allocate", byte_size, content, device]:
                runtime.setDevice(device)
                address = runtime.malloc(byte_size)
                given = create_string_buffer(bytes.fromhex(content))
                copy(address, addressof(given), len(content) // 2)
                answer = (address, runtime.ipcGetMemHandle(address).hex())
            case ["read", address, byte_size]:
                taken = create_string_buffer(byte_size)
                copy(addressof(taken), address, byte_size)
                answer = taken.raw.hex()
            case ["free", address]:
                runtime.free(address)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
