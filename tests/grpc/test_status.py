"""Every error code has its number."""

from __future__ import annotations

import grpc

from tensorfarm.server.grpc.status import status_number
from tensorfarm.workers.contract.status import Code

OTHERWISE = {Code.INVALID_ARG: "INVALID_ARGUMENT", Code.UNSUPPORTED: "UNIMPLEMENTED"}


def test_codes_are_those_of_grpc() -> None:
    for code in Code:
        assert status_number(code) == grpc.StatusCode[OTHERWISE.get(code, code.name)].value[0]
