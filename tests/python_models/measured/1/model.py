"""Keeps metrics of its own: the verb "observe" changes them and answers their values, "misuse" answers the errors of wrong use.

Only those that the model's process finds by itself: release 24.10 may die of those that its server finds.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


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
        self.counters = pb_utils.MetricFamily(name="own_requests", description="Requests of this model", kind=pb_utils.MetricFamily.COUNTER)
        self.gauges = pb_utils.MetricFamily("own_level", "A level", pb_utils.MetricFamily.GAUGE)
        self.histograms = pb_utils.MetricFamily(name="own_sizes", description="Sizes", kind=pb_utils.MetricFamily.HISTOGRAM)
        self.counter = self.counters.Metric(labels={"model": args["model_name"], "version": args["model_version"]})
        self.again = pb_utils.MetricFamily(name="own_requests", description="Other words", kind=pb_utils.MetricFamily.COUNTER)
        self.shared = self.again.Metric(labels={"model": args["model_name"], "version": args["model_version"]})
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
        return [self.counter.value(), self.shared.value(), self.gauge.value(), self.other_gauge.value()]

    def misuse(self):
        return [
            attempt(self.counters.Metric, labels=5),
            attempt(self.counters.Metric, labels={}, buckets=[1]),
            attempt(self.histograms.Metric, labels={}),
            attempt(self.histograms.Metric, labels={}, buckets=5),
            attempt(pb_utils.MetricFamily),
            attempt(pb_utils.MetricFamily, 5, "x", pb_utils.MetricFamily.GAUGE),
        ]
