"""One more than its input, made on the GPU by the library that the parameter LIBRARY names; says where the input lay."""

import importlib
import json

import numpy as np
import triton_python_backend_utils as pb_utils

GPU = 2
"""Of DLPack's numbers of kinds of devices."""


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.library = importlib.import_module(parameters["LIBRARY"]["string_value"])
        self.ordinal = int(args["model_instance_device_id"])

    def execute(self, requests):
        return [self.answer(pb_utils.get_input_tensor_by_name(request, "X")) for request in requests]

    def answer(self, x):
        kind, ordinal = x.__dlpack_device__()
        assert x.is_cpu() == (kind != GPU)
        y = self.on_gpu(x) + 1
        return pb_utils.InferenceResponse([
            pb_utils.Tensor.from_dlpack("Y", y),
            pb_utils.Tensor("ON_GPU", np.array([kind == GPU])),
            pb_utils.Tensor("DEVICE", np.array([ordinal if kind == GPU else -1], np.int32)),
        ])  # fmt: skip

    def on_gpu(self, x):
        if self.library.__name__ == "cupy":
            with self.library.cuda.Device(self.ordinal):
                return self.library.asarray(x.as_numpy() if x.is_cpu() else self.library.from_dlpack(x))
        array = self.library.from_dlpack(x.to_dlpack())
        assert array.is_cuda == (not x.is_cpu())
        return array.to(f"cuda:{self.ordinal}")
