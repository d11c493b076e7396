"""Who decides which weights stay, and when that is decided anew. NumPy alone: exact, and the same in every process."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from .allocation import ALLOCATIONS, target_count
from .calendar import UpdateCalendar
from .methods import Method
from .scores import SCORES
from .topology import start_masks, update_topology

DROP = 1  # sets the random numbers of a drop score apart from those of a grow score


@dataclass(frozen=True)
class TopologyRecord:
    """What one topology update did, as it is logged."""

    step: int
    density: float
    nonzero: int
    drop_fraction: float
    grown: int  # positions active after the update and not before it
    layer_nonzero: list[int] = field(repr=False)
    ranks: list[int] = field(repr=False, default_factory=list)  # k of each layer in the rank term; empty without it
    rank_loss: float = 0.0
    rank_decided: Optional[float] = None  # share of the regrown positions that the rank term decided; None without it


@dataclass(frozen=True)
class TopologyUpdate:
    """The new topology: an array of weights and a boolean mask for every layer, and the record of it.

    `opens` says that more weights are active than before, as when a dense phase of AC/DC begins.
    """

    weights: list[np.ndarray]
    masks: list[np.ndarray]
    record: TopologyRecord
    opens: bool


@dataclass
class Pruner:
    """Decides at each step whether the topology is updated, and what comes out (arXiv 2311.17493, section 3.3).

    A network that is pruned already is pruned further, never opened as a whole, except by the density schedule
    "alternating" or for a target above its density; which layers keep how many is the allocation's choice.

    Args:
        method: the choices that make the method, such as `METHODS["rpg"]`.
        density: the target, the share of the prunable weights that stay, in (0, 1].
        total_steps: training steps of the whole run.
        steps_per_epoch: what `method.update_every` 0 stands for.
        min_per_layer: fewest weights left in a layer.
        warmup_updates: updates at density 1 before the density schedule starts.
        seed: of random masks and scores.

    Raises:
        ValueError: a calendar that cannot reach the target; names the configuration key.
    """

    method: Method
    density: float
    total_steps: int
    steps_per_epoch: Optional[int] = None
    min_per_layer: int = 1
    warmup_updates: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        # A due update waits for a finite gradient. All else that a checkpoint needs to know follows from the step.
        self.pending = False
        self.calendar: Optional[UpdateCalendar] = None
        method = self.method
        if method.updates:
            self.calendar = UpdateCalendar(
                self.total_steps,
                method.update_every or self.steps_per_epoch or self.total_steps,
                method.prune_until,
                method.freeze_after,
                self.density,
                method.schedule,
                self.warmup_updates,
                method.drop_decay,
            )

    # ---------------------------------------------------------------------------------------- the start

    def start(self, weights: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Optional[list[np.ndarray]]:
        """The masks before the first step, by each layer's weight and mask, or None to leave them as they are.

        Raises:
            ValueError: a floor per layer that the target cannot hold, or a network pruned to less than the target.
        """
        if not self.method.prunes:
            return None
        try:  # here, so that the floor per layer fits into the target and not only into today's density
            counts = self._counts(weights, self.density)
        except ValueError as error:
            raise ValueError(f"pruning.density: {error}") from None
        kept, total = _count(masks), sum(mask.size for mask in masks)
        if kept < sum(counts) and self.method.start != "random" and self.method.schedule != "alternating":
            raise ValueError(
                f"pruning.density: {self.density} is more than model.pretrained has, a network pruned to "
                f"{kept} of {total} weights; only acdc and methods that begin with random masks open one"
            )
        if self.method.start == "dense":
            return None
        return start_masks(weights, counts, self.method.start, self.seed)

    # ------------------------------------------------------------------------------------- the calendar

    def is_due(self, step: int) -> bool:
        """Whether the topology is updated at this step. An update that can change nothing is left out."""
        return self.pending or self._is_scheduled(step)

    def _is_scheduled(self, step: int) -> bool:
        if self.calendar is None or not self.calendar.is_update(step):
            return False
        regrows = self.method.alpha > 0 and self.calendar.regrows(step)
        return regrows or self.method.soft_threshold or self.calendar.changes_density(step)

    def needs_gradient(self, step: int) -> bool:
        """Whether the update of this step ranks by the dense gradient of the objective."""
        return SCORES[self.method.drop].needs_gradient or (
            self._drop_fraction(step) > 0 and SCORES[self.method.grow].needs_gradient
        )

    @property
    def takes_gradient(self) -> bool:
        """Whether any update takes up the gradient at all: ranks by it, or lets the optimizer step on it."""
        ranks = SCORES[self.method.drop].needs_gradient or self.grows_by_gradient
        return self.method.updates and (not self.optimizer_rests or ranks)

    @property
    def grows_by_gradient(self) -> bool:
        """Whether what is dropped comes back where the gradient is largest."""
        return self.method.alpha > 0 and SCORES[self.method.grow].needs_gradient

    @property
    def optimizer_rests(self) -> bool:
        """Whether the optimizer leaves out its step on an update, as in the released implementation of RPG."""
        return self.method.alpha > 0

    def reaches_target_after(self, step: int) -> bool:
        """Whether an update after this step leaves the target density."""
        return self.pending or (
            self.calendar is not None
            and any(
                self._is_scheduled(later) and self.calendar.density_at(later) == self.density
                for later in self.calendar.steps()
                if later > step
            )
        )

    def at_target(self, step: int) -> bool:
        """Whether the network has its target density when this step is over."""
        return self.calendar is None or (step >= self.calendar.reach_step and not self.pending)

    def target(self, total: int) -> int:
        """How many of `total` prunable weights the finished network keeps."""
        return target_count(total, self.density) if self.method.prunes else total

    # --------------------------------------------------------------------------------------- an update

    def update(
        self,
        step: int,
        weights: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        gradients: Optional[Sequence[np.ndarray]],
        task_gradients: Optional[Sequence[np.ndarray]] = None,
    ) -> TopologyUpdate:
        """Draw the masks anew at a step, from 1.

        Args:
            weights, masks: of each layer; the latent weights where the method has a soft threshold.
            gradients: the dense gradient of the objective in each weight; None where `needs_gradient` says so, or
                for an update that waited until the end and has none: it keeps the largest weights and grows none.
            task_gradients: those of the task alone, where a rank term has a part in `gradients`: the record then says
                which share of the regrown positions would not have been grown by them.

        Raises:
            ValueError: a weight or gradient that is not finite, or counts that the layers cannot hold.
        """
        waited = gradients is None and self.needs_gradient(step)
        fraction = 0.0 if waited else self._drop_fraction(step)
        drop = _scores("magnitude" if waited else self.method.drop, weights, gradients, [self.seed, step, DROP])
        kept, total = _count(masks), sum(mask.size for mask in masks)
        density = self.calendar.density_at(step)
        if self.method.schedule != "alternating":  # without dense phases a network that is pruned is not opened
            density = min(density, max(kept / total, self.density))
        counts = self._counts(drop, density)
        grow = None if fraction == 0 else _scores(self.method.grow, weights, gradients, [self.seed, step])
        new_weights, new_masks = map(list, zip(*update_topology(weights, grow, counts, fraction, drop)))
        decided = None
        if grow is not None and task_gradients is not None and self.grows_by_gradient:
            alone = _scores(self.method.grow, weights, task_gradients, [self.seed, step])
            others = [mask for _, mask in update_topology(weights, alone, counts, fraction, drop)]
            regrown = sum(math.floor(fraction * count) for count in counts)
            decided = _count(new & ~other for new, other in zip(new_masks, others)) / max(regrown, 1)
        self.pending = False
        nonzero = int(sum(counts))
        grown = _count([new & ~old for new, old in zip(new_masks, masks)])
        kept_in = [int(count) for count in counts]
        record = TopologyRecord(step, nonzero / total, nonzero, fraction, grown, kept_in, rank_decided=decided)
        return TopologyUpdate(new_weights, new_masks, record, opens=nonzero > kept)

    def _drop_fraction(self, step: int) -> float:
        return self.calendar.drop_fraction(step, self.method.alpha)

    def _counts(self, scores: Sequence[np.ndarray], density: float) -> list[int]:
        return ALLOCATIONS[self.method.allocation](scores, density, self.min_per_layer)


def _scores(
    name: str, weights: Sequence[np.ndarray], gradients: Optional[Sequence[np.ndarray]], seed: Sequence[int]
) -> list[np.ndarray]:
    function, rng = SCORES[name].function, np.random.default_rng(seed)
    return [function(weight, gradient, rng) for weight, gradient in zip(weights, gradients or [None] * len(weights))]


def _count(masks: Iterable[np.ndarray]) -> int:
    return sum(int(np.count_nonzero(mask)) for mask in masks)
