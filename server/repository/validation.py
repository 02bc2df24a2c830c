"""Checks of a whole configuration and of its instance groups. Tensors, schedulers and ensembles have files of their own.

Every text is the protocol's: clients and operators match on them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...workers.contract.configuration import model_config
from ...workers.contract.status import internal, invalid
from .autofill import PLATFORM_BACKENDS
from .ensemble_graph import validate_ensemble
from .layout import stays_inside
from .scheduler_validation import validate_dynamic_batching, validate_sequence_batching

LEAST_CAPABILITY = 6.0
"""The CUDA compute capability that a GPU needs to be usable, where nobody says otherwise."""

_GROUP = model_config.ModelInstanceGroup
_ENSEMBLE = "ensemble"
_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]{1,20})")


def validate_model(config: Any) -> None:
    """Check everything that auto-completion does not touch. Raises StatusError INVALID_ARG."""
    name = config.name
    if not name:
        raise invalid("model configuration must specify 'name'")
    if not config.backend and config.platform != _ENSEMBLE:
        raise invalid(f"unexpected platform type '{config.platform}' for {name}")
    if config.backend and config.platform == _ENSEMBLE:
        raise invalid(f"Ensemble model '{name}' must have platform type '{_ENSEMBLE}' and empty backend type")
    # Backends without platforms of their own, custom ones among them, may have any.
    if config.backend in PLATFORM_BACKENDS.values() and PLATFORM_BACKENDS.get(config.platform) != config.backend:
        raise invalid(f"unexpected 'platform' and 'backend' pair, got:{config.platform}, {config.backend}")
    if config.max_batch_size < 0:
        raise invalid(f"'max_batch_size' must be non-negative value for {name}")
    if not config.HasField("version_policy"):
        raise invalid(f"must specify 'version policy' for {name}")
    if config.HasField("dynamic_batching"):
        validate_dynamic_batching(config)
    if config.HasField("sequence_batching"):
        if config.response_cache.enable:
            raise invalid(
                f"Response Cache does not currently support model {name} with sequence batching scheduler. "
                "Please disable the response cache."
            )
        validate_sequence_batching(config)
    if config.HasField("ensemble_scheduling"):
        validate_ensemble(config)
    elif config.platform == _ENSEMBLE:
        raise invalid(f"ensemble scheduling must be set for ensemble {name} whose platform is {_ENSEMBLE}")
    if config.model_transaction_policy.decoupled and config.response_cache.enable:
        raise invalid(
            f"Response Cache does not currently support model {name} with 'decoupled' transaction policy. "
            "Please disable the response cache."
        )
    _validate_metrics(config)
    validate_paths(config)


def validate_paths(config: Any) -> None:
    """Refuse any file name in a configuration that could lead out of the directory it is relative to.

    Configurations may come from clients, and every one of these names is opened, some even executed.
    """
    named = [
        ("runtime", config.runtime),
        ("default_model_filename", config.default_model_filename),
        *(("cc_model_filenames", file) for file in config.cc_model_filenames.values()),
        *(("label_filename", output.label_filename) for output in config.output),
        *(("op_library_filename", file) for file in config.model_operations.op_library_filename),
        *(("input_data_file", each.input_data_file) for warmup in config.model_warmup for each in warmup.inputs.values()),
        *(("data_file", initial.data_file) for state in config.sequence_batching.state for initial in state.initial_state),
    ]
    for field, path in named:
        if not stays_inside(path):
            raise invalid(f"{field} '{path}' must stay within the model directory for {config.name}")
    # The backend's name becomes a directory name.
    if "/" in config.backend or "\0" in config.backend or config.backend in (".", ".."):
        raise invalid(f"unexpected backend name '{config.backend}' for {config.name}")


def _validate_metrics(config: Any) -> None:
    for control in config.model_metrics.metric_control:
        if not control.HasField("metric_identifier"):
            raise invalid("metric control must specify 'metric_identifier'")
        if not control.metric_identifier.family:
            raise invalid("metric identifier must specify non-empty 'family'")
        if not control.HasField("histogram_options"):
            raise invalid("metric control must specify 'histogram_options'")
        if not control.histogram_options.buckets:
            raise invalid("histogram options must specify non-empty 'buckets'")


def validate_instance_groups(config: Any, gpus: Sequence[int], least_capability: float = LEAST_CAPABILITY) -> None:
    """Check normalised instance groups against the usable GPUs. Raises StatusError INVALID_ARG or INTERNAL."""
    if config.HasField("ensemble_scheduling"):
        return
    if not config.instance_group:
        raise invalid(f"must specify one or more 'instance group's for {config.name}")
    for group in config.instance_group:
        where = f"instance group {group.name} of model {config.name}"
        if group.kind == _GROUP.KIND_GPU:
            _validate_gpus(group, where, gpus, least_capability)
        elif group.kind in (_GROUP.KIND_CPU, _GROUP.KIND_MODEL):
            if group.gpus:
                raise invalid(f"{where} has kind {_GROUP.Kind.Name(group.kind)} but specifies one or more GPUs")
        else:
            raise internal(f"{where} has unexpected kind KIND_AUTO")
        _validate_profiles(group, where, config.platform)


def _validate_gpus(group: Any, where: str, gpus: Sequence[int], least_capability: float) -> None:
    if not group.gpus:
        raise invalid(f"{where} has kind KIND_GPU but {'specifies no GPUs' if gpus else 'no GPUs are available'}")
    for gpu in group.gpus:
        if gpu not in gpus:
            raise invalid(
                f"{where} specifies invalid or unsupported gpu id {gpu}. GPUs with at least the minimum required CUDA compute "
                f"compatibility of {least_capability:f} are: {', '.join(map(str, sorted(gpus)))}"
            )


def _validate_profiles(group: Any, where: str, platform: str) -> None:
    # The missing space is the protocol's.
    if group.profile and platform != "tensorrt_plan":
        raise invalid(f"{where} and platform {platform}specifies profile field which is only supported for TensorRT models")
    for profile in group.profile:
        if profile_index(profile) < 0:
            raise invalid(
                f"{where} and platform {platform} specifies invalid profile {profile}. "
                "The field should contain the string representation of a non-negative integer."
            )


def profile_index(profile: str) -> int:
    """The number of a TensorRT optimisation profile; what follows the digits is not looked at. Raises StatusError INVALID_ARG."""
    if not profile:
        raise invalid("profile name must not be empty")
    match = _INTEGER.match(profile)
    if match is None:
        raise invalid(f"unable to parse '{profile}': stoi")
    number = int(match[1])
    if not -(2**31) <= number < 2**31:
        raise invalid(f"unable to parse '{profile}': stoi")
    return number
