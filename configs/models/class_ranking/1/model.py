"""The best classes by name, best first."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        """Labels: one a line, in the order of the classes."""
        self.best = int(json.loads(args["model_config"])["parameters"]["best"]["string_value"])
        labels = Path(pb_utils.get_model_dir()).parent / "labels.txt"
        self.labels = np.array([line.encode() for line in labels.read_text(encoding="utf-8").splitlines()], np.object_)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """Labels and scores, [N,best] each."""
        probabilities = pb_utils.get_input_tensor_by_name(request, "probabilities").as_numpy()
        classes = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.best]
        scores = np.take_along_axis(probabilities, classes, axis=1)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("label", self.labels[classes]), pb_utils.Tensor("score", scores)])
