"""Sends any number of responses, in the way that its input VERB names. It is decoupled."""

import threading

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def response(*values):
    return pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.array([value.encode() for value in values], np.object_))])


def failure(text):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, pb_utils.TritonError.NOT_FOUND))


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

    def no_response(self, request, sender):
        sender.send(flags=FINAL)

    def one_response(self, request, sender):
        sender.send(response("one"), flags=FINAL)

    def three_responses(self, request, sender):
        for number in range(3):
            sender.send(response(str(number)))
        sender.send(flags=FINAL)

    def many_responses(self, request, sender):
        for number in range(200):
            sender.send(response(str(number)))
        sender.send(response("last"), flags=FINAL)

    def error_first(self, request, sender):
        sender.send(failure("first"))
        sender.send(flags=FINAL)

    def error_later(self, request, sender):
        sender.send(response("good"))
        sender.send(failure("later"))
        sender.send(response("good again"))
        sender.send(failure("last"), flags=FINAL)

    def empty_between(self, request, sender):
        sender.send(pb_utils.InferenceResponse())
        sender.send(response("text"))
        sender.send(flags=FINAL)

    def from_thread(self, request, sender):
        def answer():
            for number in range(3):
                sender.send(response(str(number)))
            sender.send(flags=FINAL)

        self.threads.append(threading.Thread(target=answer))
        self.threads[-1].start()

    def raised(self, request, sender):
        raise ValueError("before any response")

    def raised_later(self, request, sender):
        sender.send(response("good"))
        raise ValueError("after a response")

    def raised_last(self, request, sender):
        sender.send(response("good"), flags=FINAL)
        raise ValueError("after the last response")

    def returned(self, request, sender):
        return [response("returned")]

    def returned_nothing(self, request, sender):
        return []

    def returned_late(self, request, sender):
        sender.send(response("good"), flags=FINAL)
        return [None]

    def two_references(self, request, sender):
        sender.send(response("1"))
        request.get_response_sender().send(response("2"))
        sender.send(flags=FINAL)

    def misuse(self, request, sender):
        notes = [
            attempt(sender.send),
            attempt(sender.send, None, 0),
            attempt(sender.send, flags=2),
            attempt(sender.send, flags=3),
            attempt(sender.send, response("x"), flags=4),
            attempt(sender.send, 5),
            attempt(sender.send, response("x"), flags="x"),
            attempt(sender.is_cancelled),
            attempt(sender.send, response=response("by name"), flags=0),
        ]
        sender.send(response(*notes), flags=FINAL)
        self.notes = [
            attempt(sender.send, response("x")),
            attempt(sender.send, flags=FINAL),
            attempt(sender.send, response("x"), flags=FINAL),
        ]

    def noted(self, request, sender):
        for note in self.notes:
            sender.send(response(note))
        sender.send(flags=FINAL)
