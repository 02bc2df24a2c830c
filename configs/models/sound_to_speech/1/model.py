"""Finds speech in a sound by asking the voice detector piece by piece; the detector's state is carried from call to call."""

import numpy as np
import triton_python_backend_utils as pb_utils
from sounds import RATE_HZ, SoundError, opened

# what the detector takes: 512 new samples behind the last 64 old ones
PIECE, CONTEXT = 512, 64
PIECE_S = PIECE / RATE_HZ
# speech begins above the first and ends below the second, so that a chance near the limit does not cut it to bits
BEGINS, ENDS = 0.5, 0.35
SHORTEST_SPEECH_S, SHORTEST_PAUSE_S = 0.25, 0.1


class TritonPythonModel:
    def execute(self, requests):
        return [answer(request) for request in requests]


def answer(request):
    try:
        chances = heard(opened(pb_utils.get_input_tensor_by_name(request, "sound").as_numpy()[0]))
    except SoundError as error:
        return refused(pb_utils.TritonError(f"sound: {error}", pb_utils.TritonError.INVALID_ARG))
    except CallError as error:
        return refused(error.args[0])
    found = stretches(chances)
    columns = {
        "start_s": [start * PIECE_S for start, _ in found],
        "stop_s": [stop * PIECE_S for _, stop in found],
        "score": [np.mean(chances[start:stop]) for start, stop in found],
    }
    tensors = [pb_utils.Tensor(name, np.array(column, np.float32)) for name, column in columns.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


class CallError(Exception):
    """The detector has answered with this TritonError."""


def refused(error):
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


def heard(samples):
    """The chance of speech in each piece of the sound."""
    pieces = -(-len(samples) // PIECE)
    padded = np.pad(samples, (CONTEXT, pieces * PIECE - len(samples)))
    state = np.zeros((2, 1, 128), np.float32)
    rate = pb_utils.Tensor("sr", np.array([RATE_HZ], np.int64))
    chances = []
    for start in range(0, pieces * PIECE, PIECE):
        piece = padded[np.newaxis, start : start + CONTEXT + PIECE]
        response = pb_utils.InferenceRequest(
            model_name="voice_activity",
            requested_output_names=["output", "stateN"],
            inputs=[pb_utils.Tensor("input", piece), pb_utils.Tensor("state", state), rate],
        ).exec()
        if response.has_error():
            raise CallError(response.error())
        chances.append(pb_utils.get_output_tensor_by_name(response, "output").as_numpy().item())
        state = pb_utils.get_output_tensor_by_name(response, "stateN").as_numpy()
    return chances


def stretches(chances):
    """The first piece and the one behind the last of each stretch of speech; short pauses do not end one, short noises are none."""
    found = []
    speaking = False
    for piece, chance in enumerate(chances):
        if not speaking and chance >= BEGINS:
            speaking = True
            if found and (piece - found[-1][1]) * PIECE_S < SHORTEST_PAUSE_S:
                start, _ = found.pop()
            else:
                start = piece
            found.append((start, piece + 1))
        elif speaking and chance >= ENDS:
            found[-1] = (found[-1][0], piece + 1)
        else:
            speaking = False
    return [(start, stop) for start, stop in found if (stop - start) * PIECE_S >= SHORTEST_SPEECH_S]
