"""Answers, one JSON text each: initialize()'s args, the names of things around the model, the public names of pb_utils."""

import json
import os
import sys
import threading

import beside
import numpy as np
import triton_python_backend_utils as pb_utils


def names():
    """The public names of the module and of its classes."""
    modules = {"": pb_utils, **{name: value for name, value in vars(pb_utils).items() if isinstance(value, type)}}
    return sorted(f"{owner}.{name}" for owner, value in modules.items() for name in dir(value) if name[0] != "_")


class TritonPythonModel:
    def initialize(self, args):
        self.args = args

    def execute(self, requests):
        here = {
            "module": [__name__, __package__, __file__, __name__ in sys.modules],
            "folder": pb_utils.get_model_dir(),
            "beside": beside.NAME,
            "path": [entry for entry in sys.path if entry.startswith(self.args["model_repository"])],
            "main thread": threading.current_thread() is threading.main_thread(),
            "home": os.environ.get("HOME"),
        }
        texts = [json.dumps(self.args), json.dumps(here), json.dumps(names())]
        said = np.array([text.encode() for text in texts], np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SAID", said)]) for _ in requests]
