"""Which weights stay, decided on the host: schedule, allocation, topology, structure, calendar, methods."""
from .allocation import (ALLOCATIONS, erk_counts, global_counts, target_count, uniform_counts,
                         uniform_first_dense_counts)
from .calendar import UpdateCalendar
from .methods import METHODS, Method
from .schedule import (DENSITY_SCHEDULES, DROP_DECAYS, alternating_density, constant_density,
                       constant_drop_fraction, cosine_density, cosine_drop_fraction, cubic_density, delayed,
                       exponential_density)
from .structure import rank_raising, structural_rank
from .topology import (GROW_SCORES, STARTS, drop_and_grow, largest, random_scores, start_masks, survivors,
                       update_topology)

__all__ = [
    "ALLOCATIONS", "DENSITY_SCHEDULES", "DROP_DECAYS", "GROW_SCORES", "METHODS", "STARTS", "Method",
    "UpdateCalendar",
    "alternating_density", "constant_density", "constant_drop_fraction", "cosine_density",
    "cosine_drop_fraction", "cubic_density", "delayed", "exponential_density",
    "erk_counts", "global_counts", "target_count", "uniform_counts", "uniform_first_dense_counts",
    "rank_raising", "structural_rank",
    "drop_and_grow", "largest", "random_scores", "start_masks", "survivors", "update_topology",
]
