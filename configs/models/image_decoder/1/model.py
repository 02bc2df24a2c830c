"""JPEG and PNG files as the image classifier takes them: 224x224, planes red, green, blue, each value (v - 127) / 128."""

import numpy as np
import triton_python_backend_utils as pb_utils
from pictures import PictureError, opened
from PIL import Image

SIDE = 224
# the network was trained on the middle of its pictures: 7/8 of their shorter side
CROPPED = 7 / 8


class TritonPythonModel:
    def execute(self, requests):
        return [answer(request) for request in requests]


def answer(request):
    files = pb_utils.get_input_tensor_by_name(request, "picture").as_numpy().ravel()
    try:
        images = np.stack([planes(opened(file)) for file in files])
    except PictureError as error:
        # this request alone is refused, not the batch that it is in
        refusal = pb_utils.TritonError(f"picture: {error}", pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(output_tensors=[], error=refusal)
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("image", images)])


def planes(picture):
    """FP32 [3,224,224]."""
    width, height = picture.size
    side = max(1, int(min(width, height) * CROPPED))
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return (np.asarray(square, np.float32).transpose(2, 0, 1) - 127) / 128
