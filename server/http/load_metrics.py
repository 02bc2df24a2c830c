"""How full a language model's cache is, told in the header of a reply to who asks: ORCA's ``endpoint-load-metrics``.

The figures are custom metrics of the model: the family ``nv_trt_llm_kv_cache_block_metrics`` with the label
``kv_cache_block_type``, of which ``tokens_per``, ``used`` and ``max`` are needed.
"""

from __future__ import annotations

import logging
import math

from ...workers.contract.json_writing import write
from ..prometheus_text import Family
from .exchange import Headers

_logger = logging.getLogger(__name__)

FAMILY = "nv_trt_llm_kv_cache_block_metrics"
_LABEL = "kv_cache_block_type"


def load_metrics_headers(form: bytes, family: Family | None) -> Headers:
    """The header in the form asked for, ``text`` or ``json``; none, and a line in the log, where that cannot be told.

    ``family`` is the one called ``FAMILY``, if a model has made it.
    """
    blocks = {} if family is None else {sample.labels[_LABEL]: sample.value for sample in family.samples if _LABEL in sample.labels}
    try:
        used, most, tokens = blocks["used"], blocks["max"], blocks["tokens_per"]
    except KeyError:
        _logger.error("no endpoint-load-metrics in the reply: the metric family %s is not there, or not complete", FAMILY)
        return ()
    utilization, capacity = used / most if most > 0 else 0.0, most * tokens
    # Models give metrics any value.
    if not (math.isfinite(utilization) and math.isfinite(capacity)):
        _logger.error("no endpoint-load-metrics in the reply: the metric family %s gives no finite numbers", FAMILY)
        return ()
    figures: dict[str, float | int] = {"kv_cache_utilization": utilization, "max_token_capacity": int(capacity)}
    if form == b"json":
        text = b"JSON " + write({"named_metrics": figures})
    elif form == b"text":
        text = b"TEXT " + b", ".join([b"named_metrics.%b=%b" % (name.encode(), write(value)) for name, value in figures.items()])
    else:
        _logger.error("no endpoint-load-metrics in the reply: its format is neither text nor json")
        return ()
    return ((b"endpoint-load-metrics", text),)
