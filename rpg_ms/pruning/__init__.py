"""Which weights stay, decided on the host in NumPy: calendar, densities, allocation, scores, topology, pruner."""

from __future__ import annotations

from .allocation import ALLOCATIONS, erk_counts, global_counts, target_count
from .calendar import UpdateCalendar
from .methods import METHODS, Method
from .pruner import Pruner, TopologyRecord
from .schedule import DENSITY_SCHEDULES, cosine_drop_fraction, exponential_density
from .scores import SCORES, Score
from .structure import structural_rank
from .topology import STARTS, drop_and_grow, largest, start_masks, survivors, update_topology
