"""Writes to the server's log, by the Logger and by print."""

import sys

import triton_python_backend_utils as pb_utils

Logger = pb_utils.Logger


class TritonPythonModel:
    def initialize(self, args):
        Logger.log_info("own line: in initialize")

    def execute(self, requests):
        Logger.log("own line: as it is")
        Logger.log("own line: a warning", Logger.WARNING)
        Logger.log("own line: by name", level=Logger.ERROR)
        Logger.log_info("own line: information, é and \ttab")
        Logger.log_warn('own line: "quoted" and \\')
        Logger.log_error("own line: first\nsecond")
        Logger.log_verbose("own line: not to be seen")
        Logger.log("own line: not to be seen", Logger.VERBOSE)
        print("own line: printed", flush=True)
        print("own line: printed as an error", file=sys.stderr, flush=True)
        return [pb_utils.InferenceResponse() for _ in requests]

    def finalize(self):
        Logger.log_info("own line: in finalize")
