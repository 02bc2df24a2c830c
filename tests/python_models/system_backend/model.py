"""A backend: what its models hold is data."""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_output({"name": "SAID", "data_type": "TYPE_STRING", "dims": [-1]})
        return config

    def initialize(self, args):
        with open(os.path.join(pb_utils.get_model_dir(), "words.json")) as file:
            self.words = [word.encode() for word in json.load(file)]

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.array(self.words, np.object_))]) for _ in requests]
