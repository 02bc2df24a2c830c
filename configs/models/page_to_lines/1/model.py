"""Reads a page by asking two other models: the detector where there is text, the recogniser what it says."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from boxes import text_boxes
from pictures import PictureError, opened
from PIL import Image

# the detector is at its best where a page's shorter side has some 700 pixels
SHORT_SIDE, LONG_SIDE, MULTIPLE = 736, 2016, 32
# the recogniser was trained on lines that are filled up to this width
LINE_HEIGHT, LINE_WIDTH, WIDEST = 48, 320, 4096
TOGETHER = 8
FAINT = 50
LEAST_SCORE = 0.5


class TritonPythonModel:
    def initialize(self, args):
        """Alphabet: one character a line. The recogniser's class 0 is "nothing here", the one after the last is the space."""
        alphabet = Path(pb_utils.get_model_dir()).parent / "alphabet.txt"
        self.alphabet = ["", *alphabet.read_text(encoding="utf-8").split("\n")[:-1], " "]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        file = pb_utils.get_input_tensor_by_name(request, "page").as_numpy()[0]
        try:
            page = opened(file)
            boxes = detected(page)
            texts, scores = self.recognized([cut_out(page, box) for box in boxes])
        except PictureError as error:
            return refused(pb_utils.TritonError(f"page: {error}", pb_utils.TritonError.INVALID_ARG))
        except CallError as error:
            return refused(error.args[0])
        kept = [place for place in in_reading_order(boxes) if texts[place].strip() and scores[place] >= LEAST_SCORE]
        lines = np.array([texts[place].encode() for place in kept], np.object_)
        found = np.array([boxes[place] for place in kept], np.float32).reshape(-1, 4, 2)
        tensors = {"text": lines, "score": np.array([scores[place] for place in kept], np.float32), "box": found}
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, array) for name, array in tensors.items()])

    def recognized(self, lines):
        """What cut-out lines say, and how sure that is."""
        texts, scores = [""] * len(lines), [0.0] * len(lines)
        # lines of about the same width together: a batch is as wide as its widest
        order = sorted(range(len(lines)), key=lambda place: lines[place].shape[2])
        for start in range(0, len(order), TOGETHER):
            places = order[start : start + TOGETHER]
            batch = np.zeros((len(places), 3, LINE_HEIGHT, max(LINE_WIDTH, lines[places[-1]].shape[2])), np.float32)
            for row, place in enumerate(places):
                batch[row, :, :, : lines[place].shape[2]] = lines[place]
            chances = called("text_recognizer", batch, "softmax_11.tmp_0")
            for row, place in enumerate(places):
                texts[place], scores[place] = self.decoded(chances[row])
        return texts, scores

    def decoded(self, chances):
        """CTC: the best class of each step; a run of the same one is one character."""
        classes = chances.argmax(axis=1)
        # where no character is, a faint sign of a space will do: the recogniser learnt on Chinese, which has few
        classes[(classes == 0) & (chances[:, -1] * FAINT > chances[:, 0])] = len(self.alphabet) - 1
        counts = (classes != 0) & (np.diff(classes, prepend=0) != 0)
        text = "".join(self.alphabet[number] for number in classes[counts])
        return " ".join(text.split()), float(chances.max(axis=1)[counts].mean()) if text else 0.0


class CallError(Exception):
    """A model that was called has answered with this TritonError."""


def called(model, array, output):
    """The output of one of the two networks for its input ``x``."""
    inputs = [pb_utils.Tensor("x", array)]
    response = pb_utils.InferenceRequest(model_name=model, requested_output_names=[output], inputs=inputs).exec()
    if response.has_error():
        raise CallError(response.error())
    return pb_utils.get_output_tensor_by_name(response, output).as_numpy()


def refused(error):
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


def planes(picture):
    """What both networks take: FP32 [3,height,width]; blue, green, red; -1 to 1."""
    return np.asarray(picture, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1


def detected(page):
    """The corners of the lines of text in pixels of the page: a list of [4,2]."""
    scale = min(max(1.0, SHORT_SIDE / min(page.size)), LONG_SIDE / max(page.size))
    size = tuple(max(1, round(side * scale / MULTIPLE)) * MULTIPLE for side in page.size)
    batch = planes(page.resize(size, Image.Resampling.BILINEAR))[np.newaxis]
    chances = called("text_detector", batch, "sigmoid_0.tmp_0")[0, 0]
    return [box * page.size / size for box in text_boxes(chances)]


def cut_out(page, box):
    """One line as the recogniser takes it, FP32 [3,48,width]; lines that run askew are turned straight."""
    corner, along, down = box[0], box[1] - box[0], box[3] - box[0]
    width, height = max(1, round(np.hypot(*along))), max(1, round(np.hypot(*down)))
    # where on the page the pixel (x, y) of the cut-out lies
    way = np.column_stack([along / width, down / height, corner]).ravel()
    line = page.transform((width, height), Image.Transform.AFFINE, way, Image.Resampling.BICUBIC, fillcolor="white")
    return planes(line.resize((min(WIDEST, max(1, round(LINE_HEIGHT * width / height))), LINE_HEIGHT), Image.Resampling.BICUBIC))


def in_reading_order(boxes):
    """The places of boxes from top to bottom, those beside each other from left to right."""
    rows = []
    for place in sorted(range(len(boxes)), key=lambda place: boxes[place][:, 1].mean()):
        middle, height = boxes[place][:, 1].mean(), np.hypot(*(boxes[place][3] - boxes[place][0]))
        if not rows or middle - rows[-1][0] > height / 2:
            rows.append((middle, []))
        rows[-1][1].append(place)
    return [place for _, row in rows for place in sorted(row, key=lambda place: boxes[place][0, 0])]
