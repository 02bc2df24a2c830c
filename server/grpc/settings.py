"""The trace and logging extensions: read and change settings while the server runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...workers.contract.status import invalid, unavailable, unsupported
from ..log import FORMATS
from .method import Method
from .protocol import messages

if TYPE_CHECKING:
    from ..service import Service

_SWITCHES = ("log_info", "log_warning", "log_error")


def _trace(service: Service, request: Any, peer_is_local: bool) -> Any:
    raise unavailable("the server does not support tracing")


def _log(service: Service, request: Any, peer_is_local: bool) -> Any:
    """One by one, as the original does: those before a wrong one have changed."""
    settings = service.log_settings
    given = request.settings
    if "log_file" in given:
        raise unsupported("log file location can not be updated through network protocol")
    for name in _SWITCHES:
        if name in given:
            settings.update({name: _value(given[name], "bool_param", f"expect boolean for '{name}'")})
    if "log_verbose_level" in given:
        level = _value(given["log_verbose_level"], "uint32_param", "expect int32 for 'log_verbose_level'")
        settings.update({"log_verbose_level": level})
    if "log_format" in given:
        chosen = _value(given["log_format"], "string_param", "expect string for 'log_format'")
        if chosen not in FORMATS:
            raise invalid(f"invalid argument for log_format, got: {chosen}")
        settings.update({"log_format": chosen})
    reply = messages.LogSettingsResponse()
    for name, value in settings.as_dict().items():
        if isinstance(value, bool):
            reply.settings[name].bool_param = value
        elif isinstance(value, int):
            reply.settings[name].uint32_param = value
        else:
            reply.settings[name].string_param = value
    return reply


def _value(given: Any, kind: str, complaint: str) -> object:
    if given.WhichOneof("parameter_choice") != kind:
        raise invalid(complaint)
    return getattr(given, kind)


METHODS = {
    "TraceSetting": Method("trace", messages.TraceSettingRequest, _trace),
    "LogSettings": Method("logging", messages.LogSettingsRequest, _log),
}
