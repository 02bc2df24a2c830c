"""Inferences that are refused by their head alone: there is too much to do already, so their body need not be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...workers.contract.status import StatusError
from ..admission import Overloaded
from ..door.version_text import version_text
from ..repository.demand import NotResident

if TYPE_CHECKING:
    from ..inference_service import InferenceService


def early_refusal(service: InferenceService, model: str, version: str, byte_size: int) -> Overloaded | None:
    """Why a request with a body of ``byte_size`` bytes cannot enter now; None where it may, or where something else is wrong with it.

    What else is wrong is told once the body is there, as it is at any other time.
    """
    try:
        service.admission.check_body(service.find(model, version_text(version)), byte_size)
    except Overloaded as refusal:
        return refusal
    except (StatusError, NotResident):
        return None
    return None
