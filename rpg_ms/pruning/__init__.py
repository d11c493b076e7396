"""Which weights stay, decided on the host: schedule, allocation, topology, calendar, methods. NumPy."""
from .allocation import (ALLOCATIONS, erk_counts, global_counts, target_count, uniform_counts,
                         uniform_first_dense_counts)
from .calendar import UpdateCalendar
from .methods import METHODS, Method
from .schedule import (DENSITY_SCHEDULES, constant_density, cosine_density, cosine_drop_fraction,
                       cubic_density, delayed, exponential_density)
from .topology import drop_and_grow, largest, survivors, update_topology

__all__ = [
    "ALLOCATIONS", "DENSITY_SCHEDULES", "METHODS", "Method", "UpdateCalendar",
    "constant_density", "cosine_density", "cosine_drop_fraction", "cubic_density", "delayed",
    "exponential_density",
    "erk_counts", "global_counts", "target_count", "uniform_counts", "uniform_first_dense_counts",
    "drop_and_grow", "largest", "survivors", "update_topology",
]
