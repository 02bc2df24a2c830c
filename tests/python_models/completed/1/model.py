"""Completes a configuration that says nothing but its backend: all that auto_complete_config() can set."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "X", "data_type": "TYPE_INT32", "dims": [-1]})
        config.add_input({"name": "MORE", "data_type": "TYPE_STRING", "dims": [2, 1], "optional": True})
        config.add_output({"name": "SAID", "data_type": "TYPE_STRING", "dims": [1]})
        config.add_input({"name": "X", "data_type": "TYPE_INT32", "dims": [-1]})
        config.set_max_batch_size(4)
        config.set_dynamic_batching()
        return config

    def execute(self, requests):
        said = [np.array([[str(len(request.inputs())).encode()]], np.object_) for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SAID", array)]) for array in said]
