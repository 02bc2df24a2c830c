"""The way of a configuration from its file to its final form.

``read_config`` → (a worker auto-completes it, ``merge_completed``) → ``finish_config``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...workers.contract.configuration import ModelConfig, parse_text
from ...workers.contract.status import internal, invalid
from .autofill import autofill
from .layout import find_config, read_text_file
from .normalization import normalize, normalize_instance_groups
from .scheduler_validation import validate_states
from .tensor_validation import validate_tensors
from .validation import LEAST_CAPABILITY, validate_instance_groups, validate_model


def read_config(model_directory: Path, name: str, *, config_name: str, auto_complete: bool) -> Any:
    """Read a model's configuration, fill in and check what no backend is needed for.

    ``config_name`` picks ``configs/<config_name>.pbtxt`` where there is such a file. With
    ``auto_complete`` there may be no file at all, and tensors are not checked yet.
    Raises StatusError; a failure here means that the model could not be polled.
    """
    file = find_config(model_directory, config_name)
    if file is None:
        if not auto_complete:
            path = model_directory / "config.pbtxt"
            raise internal(f"failed to open text file for read {path}: No such file or directory")
        config = ModelConfig()
    else:
        config = parse_text(_read(file), str(file))
    prepare_config(config, model_directory, name, auto_complete=auto_complete)
    return config


def prepare_config(config: Any, model_directory: Path, name: str, *, auto_complete: bool) -> None:
    """What ``read_config`` does with a configuration once it is read, in place; for those that come by other ways.

    Raises StatusError.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise invalid("the name of a model's directory is not UTF-8") from None
    autofill(config, model_directory, name)
    normalize(config)
    validate_model(config)
    if not auto_complete:
        validate_tensors(config)
    if config.name != name:
        raise invalid(f"unexpected directory name '{name}' for model '{config.name}', directory name must equal model name")


def merge_completed(config: Any, completed: Any) -> None:
    """Take over, in place, what auto-completion may decide: batch size, tensors, a scheduler if there was none, decoupled.

    Raises StatusError INVALID_ARG where the kind of scheduler was changed.
    """
    chosen = config.WhichOneof("scheduling_choice")
    proposed = completed.WhichOneof("scheduling_choice")
    if chosen is not None and chosen != proposed:
        number = config.DESCRIPTOR.fields_by_name[chosen].number
        raise invalid(f"Cannot update scheduling choice from {number} to {number} when auto-completing.")
    config.max_batch_size = completed.max_batch_size
    for tensors in ("input", "output"):
        config.ClearField(tensors)
        getattr(config, tensors).extend(getattr(completed, tensors))
    if chosen is None and proposed is not None:
        getattr(config, proposed).CopyFrom(getattr(completed, proposed))
    if completed.HasField("model_transaction_policy"):
        config.model_transaction_policy.CopyFrom(completed.model_transaction_policy)


def finish_config(config: Any, gpus: Sequence[int], least_capability: float = LEAST_CAPABILITY) -> None:
    """Bring a configuration to its final form, in place, once nothing more will be completed.

    ``gpus`` are usable ids: those of GPUs with ``least_capability``.

    Raises StatusError; a failure here makes the version UNAVAILABLE with that reason.
    """
    normalize(config)
    normalize_instance_groups(config, gpus)
    validate_instance_groups(config, gpus, least_capability)
    validate_model(config)
    validate_tensors(config)
    validate_states(config)


def _read(file: Path) -> bytes:
    try:
        return read_text_file(file)
    except OSError as error:
        raise internal(f"failed to open text file for read {file}: {error.strerror}") from error
