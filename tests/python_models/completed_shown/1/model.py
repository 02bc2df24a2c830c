"""Fails to load: the text of its error is what auto_complete_config() sees, before and after it has completed the configuration."""

import json
import sys

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        seen = [config.as_dict(), [__name__, __file__, pb_utils.get_model_dir(), pb_utils.get_model_dir() in sys.path]]
        before = json.dumps(seen)
        config.add_input({"name": "X", "data_type": "TYPE_INT32", "dims": [-1]})
        config.add_input({"name": "MORE", "data_type": "TYPE_STRING", "dims": [2, 1], "optional": True})
        config.add_output({"name": "SAID", "data_type": "TYPE_STRING", "dims": [1]})
        config.set_max_batch_size(4)
        config.set_dynamic_batching()
        config.set_model_transaction_policy({"decoupled": True})
        raise ValueError(f"{before} {json.dumps(config.as_dict())}")
