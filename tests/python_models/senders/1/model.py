"""Answers its one response by a response sender, in the way that its input VERB names. It is not decoupled."""

import threading

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def response(*values):
    return pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.array([value.encode() for value in values], np.object_))])


def attempt(function, *positional, **named):
    """What a call gives, or what it raises; of errors that are Python's own, the class alone."""
    try:
        return repr(function(*positional, **named))
    except pb_utils.TritonModelException as error:
        return f"TritonModelException: {error}"
    except (TypeError, ValueError) as error:
        return type(error).__name__


class TritonPythonModel:
    def initialize(self, args):
        self.notes = []
        self.threads = []

    def execute(self, requests):
        (request,) = requests
        verb = pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy()[0].decode()
        return getattr(self, verb)(request, request.get_response_sender())

    def none(self, request, sender):
        sender.send(response("none returned"), flags=FINAL)

    def list_of_none(self, request, sender):
        sender.send(response("list of none returned"), FINAL)
        return [None]

    def final_apart(self, request, sender):
        sender.send(response("final apart"))
        sender.send(flags=FINAL)

    def error(self, request, sender):
        sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("by sender", pb_utils.TritonError.NOT_FOUND)), flags=FINAL)

    def late(self, request, sender):
        started = threading.Event()

        def answer():
            started.wait()
            sender.send(response("late"), flags=FINAL)

        thread = threading.Thread(target=answer)
        thread.start()
        self.threads.append((thread, request))
        started.set()
        return [None]

    def also_returned(self, request, sender):
        sender.send(response("by sender"), flags=FINAL)
        return [response("by return")]

    def only_final(self, request, sender):
        sender.send(flags=FINAL)

    def misuse(self, request, sender):
        notes = [
            attempt(sender.send),
            attempt(sender.send, None, 0),
            attempt(sender.send, flags=2),
            attempt(sender.send, response("x"), flags=4),
            attempt(sender.send, "x"),
            attempt(sender.send, response("x"), flags="x"),
            attempt(sender.send, flags=FINAL),
            attempt(sender.is_cancelled),
            str(request.get_response_sender() is sender),
        ]
        sender.send(response(*notes))
        self.notes = [
            attempt(sender.send, response("x")),
            attempt(sender.send, response("x"), flags=FINAL),
            attempt(sender.send, flags=FINAL),
        ]
        self.notes += [attempt(sender.send, response("x")), attempt(sender.send, flags=FINAL)]

    def noted(self, request, sender):
        return [response(*self.notes)]
