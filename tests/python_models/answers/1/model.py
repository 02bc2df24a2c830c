"""Answers with what its input VERB names: a value that execute() returns, a response, an error code, or output tensors."""

import numpy as np
import triton_python_backend_utils as pb_utils

Tensor = pb_utils.Tensor
Response = pb_utils.InferenceResponse


def texts(*values):
    return Tensor("SAID", np.array(values, np.object_))


def many(values, dtype=np.float32):
    return Tensor("MANY", np.array(values, dtype))


def good():
    return Response([texts(b"good")])


def odd_object():
    array = np.empty(4, np.object_)
    array[:] = [1, None, 2.5, "s"]
    return Tensor("SAID", array)


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
    "nothing": lambda: Response(),
    "no outputs": lambda: Response([]),
    "tuple of outputs": lambda: Response((texts(b"x"),)),
    "named arguments": lambda: Response(output_tensors=[texts(b"x")], error=None),
    "none as output": lambda: Response([None]),
    "error and outputs": lambda: Response([texts(b"x")], error=pb_utils.TritonError("both")),
    "error by position": lambda: Response([], pb_utils.TritonError("second argument")),
    "error without text": lambda: Response([], error=pb_utils.TritonError("")),
    "error not ascii": lambda: Response([], error=pb_utils.TritonError('größe "\u20ac"\n')),
}

CODES = ("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED")

OUTPUTS = {
    "unknown name": lambda: [Tensor("NOSUCH", np.zeros(1, np.int32))],
    "unknown name beside a known one": lambda: [Tensor("NOSUCH", np.zeros(1, np.int32)), many([1])],
    "other datatype": lambda: [many([1, 2], np.int32)],
    "double": lambda: [many([0.1], np.float64)],
    "too long": lambda: [Tensor("TWO", np.arange(3, dtype=np.int32))],
    "too short": lambda: [Tensor("TWO", np.arange(1, dtype=np.int32))],
    "other rank": lambda: [Tensor("TWO", np.zeros((1, 2), np.int32))],
    "own order": lambda: [many([1]), texts(b"x"), Tensor("TWO", np.arange(2, dtype=np.int32))],
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
    "transposed": lambda: [Tensor("MANY", np.arange(6, dtype=np.float32).reshape(2, 3).T)],
    "strided": lambda: [Tensor("MANY", np.arange(6, dtype=np.float32)[::2])],
    "reversed": lambda: [Tensor("MANY", np.arange(6, dtype=np.float32)[::-1])],
    "broadcast": lambda: [Tensor("MANY", np.broadcast_to(np.float32(7), (2, 2)))],
    "read only": lambda: [Tensor("MANY", np.frombuffer(b"\0\0\x80?", np.float32))],
    "matrix": lambda: [Tensor("MANY", np.matrix([[1.0, 2.0]]))],
    "foreign byte order": lambda: [many([1, 2], ">f4")],
    "complex": lambda: [many([1], np.complex64)],
    "times": lambda: [many([1], "M8[s]")],
    "records": lambda: [many([(1,)], [("a", "i4")])],
    "unicode array": lambda: [Tensor("SAID", np.array(["a", "bc"]))],
    "byte array": lambda: [Tensor("SAID", np.array([b"a", b"bc", b"a\0b\0"]))],
    "texts": lambda: [texts("é", "€", "")],
    "bytes": lambda: [texts("é".encode(), b"", b"a\0b")],
    "odd objects": lambda: [odd_object()],
    "text in two dims": lambda: [Tensor("SAID", np.array([[b"a"], [b"b"]], np.object_))],
    "text scalar": lambda: [Tensor("SAID", np.array(b"scalar", np.object_))],
    "no texts": lambda: [Tensor("SAID", np.array([], np.object_))],
    "no byte strings": lambda: [Tensor("SAID", np.array([], "S1"))],
    "not utf-8": lambda: [texts(b"\xff\xc3")],
    "escapes": lambda: [texts(b'"\\/\b\f\n\r\t\x01\x7f')],
    "large": lambda: [many(np.arange(300_000))],
    "empty name": lambda: [Tensor("", np.zeros(1))],
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
                responses.append(Response([], error=pb_utils.TritonError(f"as {verb}", getattr(pb_utils.TritonError, verb))))
            else:
                responses.append(Response(OUTPUTS[verb]()))
        return responses
