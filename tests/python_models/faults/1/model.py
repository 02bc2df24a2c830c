"""Fails in execute() in the way that its input VERB names; any other verb is answered."""

import sys

import numpy as np
import triton_python_backend_utils as pb_utils


class OwnError(Exception):
    pass


RAISED = {
    "value": lambda: ValueError("boom"),
    "empty": lambda: ValueError(),
    "key": lambda: KeyError("x"),
    "own": lambda: OwnError("own"),
    "two lines": lambda: RuntimeError("line 1\nline 2"),
    "not ascii": lambda: RuntimeError("größe \u20ac"),
    "quotes": lambda: RuntimeError('a "b" \\ \t c'),
    "os": lambda: OSError(2, "no such", "file"),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
    "keyboard": lambda: KeyboardInterrupt(),
    "base": lambda: BaseException("base"),
    "stop": lambda: StopIteration(),
    "model": lambda: pb_utils.TritonModelException("model exception"),
    "not an exception": lambda: pb_utils.TritonError("error"),
}


def deep():
    raise ValueError("deep")


def chained():
    try:
        deep()
    except ValueError as error:
        raise RuntimeError("second") from error


def comprehended():
    return [1 // number for number in (1, 0)][0]


CALLED = {
    "deep": deep,
    "chained": chained,
    "comprehended": comprehended,
    "division": lambda: 1 / 0,
    "exit": lambda: sys.exit(3),
    "name": lambda: no_such_name,  # noqa: F821  # what it is for
    "import": lambda: __import__("no_such_module"),
}


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            verb = pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy().reshape(-1)[0].decode()
            if verb in RAISED:
                raise RAISED[verb]()
            if verb in CALLED:
                CALLED[verb]()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.array([verb.encode()], np.object_))]))
        return responses
