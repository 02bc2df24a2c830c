"""Does what its input SCRIPT says, step by step; each step sends a response, unless it says otherwise.

text:A,B    TEXT, one element each                  name:DT:1,2   output DT of that datatype, one dim
none        a response without outputs              error:WHY     a response that is an error
bare        a response without outputs, the last    last:A        TEXT, and it is the last
params:JSON TEXT "p" with response parameters       raise:WHY     execute() raises
wait        sends nothing until the request is cancelled, then TEXT "cancelled"
shape:2,3   TEXT of 6 elements with that shape      pause:S       waits for so many seconds
"""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def texts(values):
    return pb_utils.Tensor("TEXT", np.array([value.encode() for value in values], np.object_))


def numbers(datatype, values):
    if datatype == "BOOL":
        return pb_utils.Tensor(datatype, np.array([value == "1" for value in values], np.bool_))
    dtype = {"FP16": "float16", "FP32": "float32", "FP64": "float64"}.get(datatype, datatype.lower())
    return pb_utils.Tensor(datatype, np.array([float(value) if "float" in dtype else int(value) for value in values], dtype))


def response_of(step):
    verb, _, rest = step.partition(":")
    if verb in ("text", "last"):
        return pb_utils.InferenceResponse([texts(rest.split(","))])
    if verb in ("none", "bare"):
        return pb_utils.InferenceResponse([])
    if verb == "error":
        return pb_utils.InferenceResponse([], error=pb_utils.TritonError(rest))
    if verb == "name":
        datatype, _, values = rest.partition(":")
        return pb_utils.InferenceResponse([numbers(datatype, values.split(",") if values else [])])
    if verb == "shape":
        shape = [int(dim) for dim in rest.split(",")]
        made = np.array([str(index).encode() for index in range(int(np.prod(shape)))], np.object_).reshape(shape)
        return pb_utils.InferenceResponse([pb_utils.Tensor("TEXT", made)])
    if verb == "params":
        return pb_utils.InferenceResponse([texts(["p"])], parameters=json.loads(rest))
    if verb == "two":
        return pb_utils.InferenceResponse([texts(["b"]), numbers("INT32", ["1"])])
    raise ValueError(step)


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            script = pb_utils.get_input_tensor_by_name(request, "SCRIPT").as_numpy().reshape(-1)
            self.run(request, [step.decode() for step in script])

    def run(self, request, script):
        sender = request.get_response_sender()
        for step in script:
            if step.startswith("raise:"):
                raise RuntimeError(step[6:])
            if step.startswith("pause:"):
                time.sleep(float(step[6:]))
                continue
            if step == "wait":
                until = time.monotonic() + 20
                while not request.is_cancelled() and time.monotonic() < until:
                    time.sleep(0.01)
                sender.send(pb_utils.InferenceResponse([texts(["cancelled"])]))
                continue
            final = step.startswith("last:") or step == "bare"
            if final:
                sender.send(response_of(step), flags=FINAL)
                return
            sender.send(response_of(step))
        sender.send(flags=FINAL)
