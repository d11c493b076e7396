"""The pruning methods. A method is a row of choices; to add one, add a row.

| choice | names in |
|---|---|
| density schedule | `schedule.DENSITY_SCHEDULES` |
| allocation over the layers | `allocation.ALLOCATIONS` |
| grow score | `GROW_SCORES` |
| drop fraction and rank term | numbers |

A new grow score is a new name here, and an array per layer handed to `update_topology` in place of the
gradients.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from .allocation import ALLOCATIONS
from .schedule import DENSITY_SCHEDULES

GROW_SCORES = ("gradient",)


@dataclass(frozen=True)
class Method:
    """One pruning method, with its default numbers.

    Args:
        schedule: density schedule; None leaves the network dense, with no topology update at all.
        allocation: how the weights that stay are spread over the layers; None only together with `schedule`.
        grow: what dropped places are grown by; None for a method that only prunes.
        alpha: α, the initial drop fraction, in [0, 1]; above 0 needs `grow`.
        rank_lambda: λ, weight of the adversarial rank term, at least 0; 0 leaves it out.
        rank_delta: δ, error budget of the rank term, in (0, 1].

    Raises:
        ValueError: an unknown name, a number out of range, or choices that contradict each other.
    """

    schedule: Optional[str]
    allocation: Optional[str]
    grow: Optional[str] = None
    alpha: float = 0.0
    rank_lambda: float = 0.0
    rank_delta: float = 0.1

    def __post_init__(self):
        for choice, names in (("schedule", DENSITY_SCHEDULES), ("allocation", ALLOCATIONS),
                              ("grow", GROW_SCORES)):
            name = getattr(self, choice)
            if name is not None and name not in names:
                raise ValueError(f"pruning.{choice}: {name!r} is not one of {', '.join(names)}")
        if (self.schedule is None) != (self.allocation is None):
            raise ValueError(f"a method has both a schedule and an allocation, or neither: got "
                             f"{self.schedule!r} and {self.allocation!r}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"pruning.alpha: {self.alpha} is not in [0, 1]")
        if self.alpha > 0 and self.grow is None:
            raise ValueError(f"pruning.alpha: {self.alpha} drops weights, but the method has nothing to "
                             "grow by; it must be 0")
        if not self.rank_lambda >= 0:
            raise ValueError(f"rank.lambda: {self.rank_lambda} is negative")
        if not 0 < self.rank_delta <= 1:
            raise ValueError(f"rank.delta: {self.rank_delta} is not in (0, 1]")

    @property
    def prunes(self) -> bool:
        """Whether there are topology updates."""
        return self.schedule is not None

    @property
    def needs_gradient(self) -> bool:
        """Whether an update needs the dense gradient."""
        return self.grow == "gradient" and self.alpha > 0


METHODS: dict[str, Method] = {
    # Rank-based pruninG, with the numbers of its 90 % ResNet-50 (arXiv 2311.17493)
    "rpg": Method("exponential", "global", grow="gradient", alpha=0.3, rank_lambda=0.5, rank_delta=0.1),
    # Gradual magnitude pruning (Zhu & Gupta 2017, arXiv 1710.01878). The baseline in RPG's released code is
    # this with schedule "exponential".
    "gmp": Method("cubic", "global"),
    "dense": Method(None, None),
}
