"""Which weights stay, decided on the host in NumPy: calendar, schedule, allocation, scores, topology, pruner."""

from __future__ import annotations

from .allocation import ALLOCATIONS, erk_counts, global_counts, target_count, uniform_counts, uniform_first_dense_counts
from .calendar import UpdateCalendar
from .methods import METHODS, Method
from .pruner import Pruner, TopologyRecord, TopologyUpdate
from .schedule import (
    DENSITY_SCHEDULES,
    DROP_DECAYS,
    alternating_density,
    constant_density,
    constant_drop_fraction,
    cosine_drop_fraction,
    cubic_density,
    delayed,
    exponential_density,
)
from .scores import SCORES, Score
from .structure import structural_rank
from .topology import STARTS, drop_and_grow, largest, start_masks, survivors, update_topology

__all__ = [
    "ALLOCATIONS",
    "DENSITY_SCHEDULES",
    "DROP_DECAYS",
    "METHODS",
    "SCORES",
    "STARTS",
    "Method",
    "Pruner",
    "Score",
    "TopologyRecord",
    "TopologyUpdate",
    "UpdateCalendar",
    "alternating_density",
    "constant_density",
    "constant_drop_fraction",
    "cosine_drop_fraction",
    "cubic_density",
    "delayed",
    "exponential_density",
    "erk_counts",
    "global_counts",
    "target_count",
    "uniform_counts",
    "uniform_first_dense_counts",
    "drop_and_grow",
    "largest",
    "start_masks",
    "structural_rank",
    "survivors",
    "update_topology",
]
