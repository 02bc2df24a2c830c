"""Keeps metrics of its own: the verb "observe" changes them and answers their values, "misuse" answers the errors of wrong use."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

Family = pb_utils.MetricFamily


def attempt(function, *positional, **named):
    """Whether a call works, or what it raises; of errors that are Python's own, the class alone."""
    try:
        function(*positional, **named)
    except pb_utils.TritonModelException as error:
        return str(error)
    except TypeError as error:
        return type(error).__name__
    return "works"


class TritonPythonModel:
    def initialize(self, args):
        self.counters = Family(name="own_requests", description="Requests of this model", kind=Family.COUNTER)
        self.gauges = Family("own_level", "A level", Family.GAUGE)
        self.histograms = Family(name="own_sizes", description="Sizes", kind=Family.HISTOGRAM)
        self.counter = self.counters.Metric(labels={"model": args["model_name"], "version": args["model_version"]})
        self.gauge = self.gauges.Metric(labels={})
        self.other_gauge = self.gauges.Metric(labels={"colour": 'a "quoted" \\ one\n'})
        self.histogram = self.histograms.Metric(labels={"unit": "bytes"}, buckets=[0.1, 1, 10])

    def execute(self, requests):
        responses = []
        for request in requests:
            verb = pb_utils.get_input_tensor_by_name(request, "VERB").as_numpy()[0].decode()
            said = [json.dumps(value).encode() for value in getattr(self, verb)()]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SAID", np.array(said, np.object_))]))
        return responses

    def observe(self):
        self.counter.increment(2)
        self.gauge.set(1.5)
        self.gauge.increment(-1)
        self.other_gauge.set(1e9)
        for value in (0.05, 0.5, 5, 50):
            self.histogram.observe(value)
        shared = self.counters.Metric(labels={"model": "measured", "version": "1"})
        again = Family(name="own_requests", description="Other words", kind=Family.COUNTER).Metric(labels={"again": "yes"})
        again.increment(1)
        return [self.counter.value(), shared.value(), again.value(), self.gauge.value(), self.other_gauge.value()]

    def misuse(self):
        return [
            attempt(self.counter.set, 1),
            attempt(self.counter.observe, 1),
            attempt(self.gauge.observe, 1),
            attempt(self.histogram.value),
            attempt(self.histogram.increment, 1),
            attempt(self.histogram.set, 1),
            attempt(self.counters.Metric, labels=5),
            attempt(self.counters.Metric, labels={"a": 1}),
            attempt(self.counters.Metric, labels={}, buckets=[1]),
            attempt(self.histograms.Metric, labels={}),
            attempt(self.histograms.Metric, labels={}, buckets=5),
            attempt(Family, name="own_requests", description="x", kind=Family.GAUGE),
            attempt(Family, name="own requests", description="x", kind=Family.GAUGE),
            attempt(Family),
            attempt(Family, 5, "x", Family.GAUGE),
        ]
