"""Makes itself decoupled by auto_complete_config()."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_model_transaction_policy({"decoupled": True})
        return config

    def execute(self, requests):
        for request in requests:
            said = pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy()
            response = pb_utils.InferenceResponse([pb_utils.Tensor("SAID", said)])
            request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
