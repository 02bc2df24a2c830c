"""Loads and unloads other models, in the way that its input VERB names; answers what came of it, or the error."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

CONFIG = {
    "backend": "python",
    "max_batch_size": 2,
    "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [1]}],
    "output": [{"name": "SAID", "data_type": "TYPE_STRING", "dims": [1]}],
    "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
}

SOURCE = b"""
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        said = np.array([[b"from a file that was sent"]], np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SAID", said)]) for _ in requests]
"""


def add():
    x = pb_utils.Tensor("X", np.array([1, 2], np.int32))
    response = pb_utils.InferenceRequest(model_name="adder", requested_output_names=["SUM"], inputs=[x]).exec()
    return response.error().message() if response.has_error() else repr(response.output_tensors()[0].as_numpy().tolist())


VERBS = {
    "load": lambda: pb_utils.load_model("adder"),
    "load by name": lambda: pb_utils.load_model(model_name="adder", config="", files=None),
    "load unknown": lambda: pb_utils.load_model("nosuch"),
    "load broken": lambda: pb_utils.load_model("broken"),
    "load with files": lambda: pb_utils.load_model("sent", config=json.dumps(CONFIG), files={"file:1/model.py": SOURCE}),
    "load with bad config": lambda: pb_utils.load_model("adder", config="{"),
    "load with files alone": lambda: pb_utils.load_model("adder", files={"file:1/model.py": SOURCE}),
    "load with a number for files": lambda: pb_utils.load_model("adder", files=5),
    "load a number": lambda: pb_utils.load_model(5),
    "unload": lambda: pb_utils.unload_model("adder"),
    "unload with dependents": lambda: pb_utils.unload_model(model_name="adder", unload_dependents=True),
    "unload unknown": lambda: pb_utils.unload_model("nosuch"),
    "unload sent": lambda: pb_utils.unload_model("sent"),
    "ready": lambda: pb_utils.is_model_ready("adder"),
    "ready sent": lambda: pb_utils.is_model_ready("sent"),
    "add": add,
}


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            verb = pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy()[0].decode()
            try:
                said = repr(VERBS[verb]())
            except pb_utils.TritonModelException as error:
                said = f"TritonModelException: {error}"
            except TypeError as error:
                said = type(error).__name__
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.array([said.encode()], np.object_))]))
        return responses
