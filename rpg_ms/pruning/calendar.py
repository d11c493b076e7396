"""When the topology is updated, and at which density.

Steps count from 1. With `Δ = update_every` there is an update at every step divisible by Δ up to `T_end`;
number `T = T_prune // Δ` of them, at step `T·Δ <= T_prune`, reaches the target density exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .schedule import DENSITY_SCHEDULES, DROP_DECAYS, LEAST_UPDATES


@dataclass(frozen=True)
class UpdateCalendar:
    """The topology updates of one training run (arXiv 2311.17493).

    Args:
        total_steps: training steps of the whole run.
        update_every: Δ, steps from one update to the next.
        prune_until, freeze_after: T_prune and T_end as fractions of all steps, in (0, 1], in this order.
        density: the target, in (0, 1].
        schedule, drop_decay: names in `DENSITY_SCHEDULES` and `DROP_DECAYS`.
        warmup_updates: updates at density 1 before the density schedule starts.

    Raises:
        ValueError: a value out of range, or no update that could reach the target; names the configuration key.
    """

    total_steps: int
    update_every: int
    prune_until: float
    freeze_after: float
    density: float
    schedule: str = "exponential"
    warmup_updates: int = 0
    drop_decay: str = "cosine"

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ValueError(f"a run of {self.total_steps} steps has no topology update")
        if self.update_every < 1:
            raise ValueError(f"pruning.update_every: {self.update_every} steps, must be at least 1")
        for key in ("prune_until", "freeze_after", "density"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"pruning.{key}: {getattr(self, key)} is not in (0, 1]")
        if self.schedule not in DENSITY_SCHEDULES:
            raise ValueError(f"pruning.schedule: {self.schedule!r} is not one of {', '.join(DENSITY_SCHEDULES)}")
        if self.drop_decay not in DROP_DECAYS:
            raise ValueError(f"pruning.drop_decay: {self.drop_decay!r} is not one of {', '.join(DROP_DECAYS)}")
        if self.prune_step > self.end_step:
            raise ValueError(
                f"pruning.prune_until: {self.prune_until} of {self.total_steps} steps is after "
                f"pruning.freeze_after: {self.freeze_after}, so no update can reach the target density"
            )
        if self.updates < 1:
            raise ValueError(
                f"pruning.update_every: {self.update_every} steps is more than the {self.prune_step} up to "
                f"pruning.prune_until ({self.prune_until} of {self.total_steps}), so no update can reach the target "
                "density"
            )
        if not 0 <= self.warmup_updates < self.updates:
            raise ValueError(
                f"pruning.warmup_updates: {self.warmup_updates} is not in [0, {self.updates - 1}]; there are "
                f"{self.updates} updates until pruning.prune_until (pruning.update_every: {self.update_every}) and the "
                "last must reach the target density"
            )
        least, there = LEAST_UPDATES.get(self.schedule, 1), self.updates - self.warmup_updates
        if there < least:
            raise ValueError(
                f"pruning.schedule: {self.schedule} needs at least {least} updates until pruning.prune_until, and "
                f"there are {there}; pruning.update_every: {self.update_every} steps is too many"
            )

    @property
    def prune_step(self) -> int:
        """T_prune in steps."""
        return _steps(self.prune_until, self.total_steps)

    @property
    def end_step(self) -> int:
        """T_end in steps."""
        return _steps(self.freeze_after, self.total_steps)

    @property
    def updates(self) -> int:
        """T, the number of the update that reaches the target density."""
        return self.prune_step // self.update_every

    @property
    def reach_step(self) -> int:
        """The step of update T."""
        return self.updates * self.update_every

    def steps(self) -> range:
        """The steps of all updates, in order."""
        return range(self.update_every, self.end_step + 1, self.update_every)

    def is_update(self, step: int) -> bool:
        """Whether the topology is updated on this step."""
        return step in self.steps()

    def regrows(self, step: int) -> bool:
        """Whether the update of this step may grow weights: what grew at the last step would never be trained."""
        return self.is_update(step) and step < self.total_steps

    def update_index(self, step: int) -> int:
        """How many updates have been made when this step is over; on an update step, that update's number."""
        return min(step, self.end_step) // self.update_every

    def density_at(self, step: int) -> float:
        """The density when this step is over: 1.0 before the first update, `density` from `reach_step` on."""
        update = max(self.update_index(step) - self.warmup_updates, 0)
        return DENSITY_SCHEDULES[self.schedule](update, self.updates - self.warmup_updates, self.density)

    def drop_fraction(self, step: int, alpha: float) -> float:
        """The drop fraction `f(t)` of this step: 0.0 at the last step, by "cosine" once the topology is frozen."""
        if step >= self.total_steps:
            return 0.0
        return DROP_DECAYS[self.drop_decay](min(step, self.end_step), self.end_step, alpha)

    def changes_density(self, step: int) -> bool:
        """Whether the update of this step has another density than the one before it; the first always does."""
        return self.update_index(step) <= 1 or self.density_at(step) != self.density_at(step - self.update_every)


def _steps(fraction: float, total_steps: int) -> int:
    """`floor(fraction * total_steps)`, where 0.29 of 100 is 29 although the float product lies just below."""
    product = fraction * total_steps
    nearest = round(product)
    return nearest if math.isclose(product, nearest, rel_tol=1e-12) else math.floor(product)
