"""A backend in Python: its models have no code of their own, only a number in a file."""

import json
import sys
from pathlib import Path

import beside_backend
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        if not config.as_dict()["input"]:
            config.add_input({"name": "X", "data_type": "TYPE_INT32", "dims": [-1]})
            config.add_output({"name": "SAID", "data_type": "TYPE_STRING", "dims": [-1]})
        return config

    def initialize(self, args):
        self.args = {name: value for name, value in args.items() if name != "model_config"}
        self.weight = int((Path(pb_utils.get_model_dir()) / "weight.txt").read_text())

    def execute(self, requests):
        responses = []
        for request in requests:
            weighted = pb_utils.get_input_tensor_by_name(request, "X").as_numpy() * self.weight
            paths = [path for path in sys.path if path.startswith(self.args["model_repository"]) or path == str(Path(__file__).parent)]
            texts = [[__name__, __file__, pb_utils.get_model_dir(), beside_backend.NAME], self.args, paths, weighted.tolist()]
            said = np.array([json.dumps(text).encode() for text in texts], np.object_)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SAID", said)]))
        return responses
