"""Answers with what its input VERB names: a value that execute() returns, a response, an error code, or output tensors."""

import numpy as np
import triton_python_backend_utils as pb_utils


def tensor(name, array):
    return pb_utils.Tensor(name, array)


def response(*positional, **named):
    return pb_utils.InferenceResponse(*positional, **named)


def texts(*values):
    return tensor("SAID", np.array(values, np.object_))


def many(values, dtype=np.float32):
    return tensor("MANY", np.array(values, dtype))


def good():
    return response([texts(b"good")])


def odd_object():
    array = np.empty(4, np.object_)
    array[:] = [1, None, 2.5, "s"]
    return tensor("SAID", array)


RETURNED = {
    "tuple": lambda: (good(),),
    "number": lambda: 5,
    "text": lambda: "x",
    "dict": lambda: {},
    "iterator": lambda: iter([good()]),
    "array": lambda: np.array([good()], np.object_),
    "true": lambda: True,
    "false": lambda: False,
    "no responses": lambda: [],
    "two responses": lambda: [good(), good()],
    "list of numbers": lambda: [1],
    "list of errors": lambda: [pb_utils.TritonError("x")],
    "list of tensors": lambda: [texts(b"x")],
    "list of lists": lambda: [[good()]],
}

RESPONSES = {
    "nothing": lambda: response(),
    "no outputs": lambda: response([]),
    "tuple of outputs": lambda: response((texts(b"x"),)),
    "named arguments": lambda: response(output_tensors=[texts(b"x")], error=None),
    "none as output": lambda: response([None]),
    "error and outputs": lambda: response([texts(b"x")], error=pb_utils.TritonError("both")),
    "error by position": lambda: response([], pb_utils.TritonError("second argument")),
    "error without text": lambda: response([], error=pb_utils.TritonError("")),
    "error not ascii": lambda: response([], error=pb_utils.TritonError('größe "\u20ac"\n')),
}

CODES = ("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED")

OUTPUTS = {
    "unknown name": lambda: [tensor("NOSUCH", np.zeros(1, np.int32))],
    "unknown name beside a known one": lambda: [tensor("NOSUCH", np.zeros(1, np.int32)), many([1])],
    "other datatype": lambda: [many([1, 2], np.int32)],
    "double": lambda: [many([0.1], np.float64)],
    "too long": lambda: [tensor("TWO", np.arange(3, dtype=np.int32))],
    "too short": lambda: [tensor("TWO", np.arange(1, dtype=np.int32))],
    "other rank": lambda: [tensor("TWO", np.zeros((1, 2), np.int32))],
    "own order": lambda: [many([1]), texts(b"x"), tensor("TWO", np.arange(2, dtype=np.int32))],
    "twice": lambda: [many([1]), many([2])],
    "scalar": lambda: [many(3)],
    "empty": lambda: [many([])],
    "empty in two dims": lambda: [many(np.zeros((2, 0)))],
    "not finite": lambda: [many([np.nan, np.inf, -np.inf, -0.0])],
    "halves": lambda: [many([1.5, -2], np.float16)],
    "booleans": lambda: [many([True, False], np.bool_)],
    "bytes as numbers": lambda: [many([-1, 1], np.int8), many([255], np.uint8)],
    "big numbers": lambda: [many([2**63 - 1, -(2**63)], np.int64), many([2**64 - 1], np.uint64)],
    "long long": lambda: [many([1], np.longlong)],
    "transposed": lambda: [tensor("MANY", np.arange(6, dtype=np.float32).reshape(2, 3).T)],
    "strided": lambda: [tensor("MANY", np.arange(6, dtype=np.float32)[::2])],
    "reversed": lambda: [tensor("MANY", np.arange(6, dtype=np.float32)[::-1])],
    "broadcast": lambda: [tensor("MANY", np.broadcast_to(np.float32(7), (2, 2)))],
    "read only": lambda: [tensor("MANY", np.frombuffer(b"\0\0\x80?", np.float32))],
    "matrix": lambda: [tensor("MANY", np.matrix([[1.0, 2.0]]))],
    "foreign byte order": lambda: [many([1, 2], ">f4")],
    "complex": lambda: [many([1], np.complex64)],
    "times": lambda: [many([1], "M8[s]")],
    "records": lambda: [many([(1,)], [("a", "i4")])],
    "unicode array": lambda: [tensor("SAID", np.array(["a", "bc"]))],
    "byte array": lambda: [tensor("SAID", np.array([b"a", b"bc", b"a\0b\0"]))],
    "texts": lambda: [texts("é", "€", "")],
    "bytes": lambda: [texts("é".encode(), b"", b"a\0b")],
    "odd objects": lambda: [odd_object()],
    "text in two dims": lambda: [tensor("SAID", np.array([[b"a"], [b"b"]], np.object_))],
    "text scalar": lambda: [tensor("SAID", np.array(b"scalar", np.object_))],
    "no texts": lambda: [tensor("SAID", np.array([], np.object_))],
    "no byte strings": lambda: [tensor("SAID", np.array([], "S1"))],
    "not utf-8": lambda: [texts(b"\xff\xc3")],
    "escapes": lambda: [texts(b'"\\/\b\f\n\r\t\x01\x7f')],
    "large": lambda: [many(np.arange(300_000))],
    "empty name": lambda: [tensor("", np.zeros(1))],
}


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            verb = pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy().reshape(-1)[0].decode()
            if verb in RETURNED:
                return RETURNED[verb]()
            if verb in RESPONSES:
                responses.append(RESPONSES[verb]())
            elif verb in CODES:
                responses.append(response([], error=pb_utils.TritonError(f"as {verb}", getattr(pb_utils.TritonError, verb))))
            else:
                responses.append(response(OUTPUTS[verb]()))
        return responses
