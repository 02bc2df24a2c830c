"""Writes to the server's log, by the Logger and by print."""

import sys

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        pb_utils.Logger.log_info("own line: in initialize")

    def execute(self, requests):
        logger = pb_utils.Logger
        logger.log("own line: as it is")
        logger.log("own line: a warning", logger.WARNING)
        logger.log("own line: by name", level=logger.ERROR)
        logger.log_info("own line: information, é and \ttab")
        logger.log_warn('own line: "quoted" and \\')
        logger.log_error("own line: first\nsecond")
        logger.log_verbose("own line: not to be seen")
        logger.log("own line: not to be seen", logger.VERBOSE)
        print("own line: printed", flush=True)
        print("own line: printed as an error", file=sys.stderr, flush=True)
        return [pb_utils.InferenceResponse() for _ in requests]

    def finalize(self):
        pb_utils.Logger.log_info("own line: in finalize")
