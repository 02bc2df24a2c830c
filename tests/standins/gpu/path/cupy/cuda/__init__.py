"""As ``cupy.cuda``."""

from __future__ import annotations

from . import runtime as runtime
