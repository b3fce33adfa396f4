"""How busy shards may be before replicas are added: earlier than the load controller acts.

Queueing theory in one formula. Knows no Ray and no controller.
"""

from __future__ import annotations

import math

SCALE_UP_SHARE = 0.4
"""Share of the wait that the controller bears at which replicas are added: see
`scale_up_utilisation`."""


def scale_up_utilisation(num_servers: int, target_share: float) -> float:
    """How busy shards may be, in work asked for, before replicas are added.

    Chosen so that replicas come before the controller acts: the utilisation at which the mean wait
    is `SCALE_UP_SHARE` of the wait that it bears. Searches of one rung take nearly the same time,
    so waits are those of an M/D/k queue, W / S = u^(sqrt(2 (k + 1)) - 1) / (2 k (1 - u)).

    Args:
        num_servers: searches that run at a time, over all replicas.
        target_share: `LoadSettings.target_share`.

    Returns:
        A share of capacity, 0..1.

    Source: Sakasegawa (1977), "An approximation formula Lq = a rho^b / (1 - rho)".

    >>> [round(scale_up_utilisation(k, 0.1), 2) for k in (1, 2, 4, 16)]
    [0.07, 0.23, 0.45, 0.77]
    """
    power = math.sqrt(2 * (num_servers + 1)) - 1
    low, high = 0.0, 1.0
    for _ in range(40):
        busy = (low + high) / 2
        wait = busy**power / (2 * num_servers * (1 - busy))
        low, high = (busy, high) if wait < SCALE_UP_SHARE * target_share else (low, busy)
    return low
