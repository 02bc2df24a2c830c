"""Stands in for msgspec where a model's own interpreter has none: the part of it that workers use, in plain Python."""

from __future__ import annotations

from . import packing, structs, unpacking
from .errors import DecodeError, MsgspecError, ValidationError
from .structs import Struct

__all__ = ["DecodeError", "MsgspecError", "Struct", "ValidationError", "msgpack", "structs"]


class msgpack:  # noqa: N801 - msgspec's name
    """The module ``msgspec.msgpack``."""

    Encoder = packing.Encoder
    Decoder = unpacking.Decoder
