"""The cycle collector of a process that serves."""

from __future__ import annotations

import gc


def relax_collector() -> None:
    """Keep the cycle collector off what was made at start, and let it run rarely.

    A burst of requests in flight is more than its default 700 new objects, so it would look for
    cycles in every turn of the loop: 14 % of the time under load. Requests leave none.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
