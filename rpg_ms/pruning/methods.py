"""The pruning methods. A method is a row of choices; to add one, add a row.

What can be chosen stands in the tables `STARTS`, `DENSITY_SCHEDULES`, `ALLOCATIONS`, `SCORES` and `DROP_DECAYS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from .allocation import ALLOCATIONS
from .schedule import DENSITY_SCHEDULES, DROP_DECAYS
from .scores import SCORES
from .topology import STARTS


@dataclass(frozen=True)
class Method:
    """One pruning method, with its default numbers.

    Args:
        schedule: the density schedule; None leaves the network dense, with no topology update at all.
        allocation: how the weights that stay are spread over the layers; None only together with `schedule`.
        start: the masks before the first step: "dense", or at the target density "random" or "magnitude".
        drop: the score that weights are kept by.
        grow: the score that dropped places are grown by; None for a method that only prunes.
        alpha: α, the initial drop fraction, in [0, 1]; above 0 needs `grow`.
        drop_decay: how the drop fraction falls from α.
        soft_threshold: whether the network computes with soft-thresholded, rescaled copies of dense weights that
            go on learning (`rpg_ms.cells.SoftThreshold`); only with drop by magnitude and `alpha` 0.
        update_every: Δ, steps from one topology update to the next; 0: one epoch.
        prune_until: T_prune, when the target density is reached, as a fraction of all steps.
        freeze_after: T_end, the end of topology updates, as a fraction of all steps.
        rank_lambda: λ, weight of the adversarial rank term, at least 0; 0 leaves it out.
        rank_share: the rank term's share in the score of regrowth, in [0, 1), in the place of λ: each layer's gradients
            of task and rank term are brought to unit norm first. None for the published sum with λ.
        rank_delta: δ, error budget of the rank term, in (0, 1].
        clip_norm: largest global norm of the gradient, above 0; None for any.

    Raises:
        ValueError: an unknown name, a number out of range, or choices that contradict each other.
    """

    schedule: Optional[str]
    allocation: Optional[str]
    start: str = "dense"
    drop: str = "magnitude"
    grow: Optional[str] = None
    alpha: float = 0.0
    drop_decay: str = "cosine"
    soft_threshold: bool = False
    update_every: int = 100
    prune_until: float = 0.8
    freeze_after: float = 0.9
    rank_lambda: float = 0.0
    rank_share: Optional[float] = None
    rank_delta: float = 0.1
    clip_norm: Optional[float] = None

    def __post_init__(self) -> None:
        for choice, names in (
            ("schedule", DENSITY_SCHEDULES),
            ("allocation", ALLOCATIONS),
            ("start", STARTS),
            ("drop", SCORES),
            ("grow", SCORES),
            ("drop_decay", DROP_DECAYS),
        ):
            name = getattr(self, choice)
            if name is not None and name not in names:
                raise ValueError(f"pruning.{choice}: {name!r} is not one of {', '.join(names)}")
        if (self.schedule is None) != (self.allocation is None):
            raise ValueError(
                f"a method has both a density schedule and an allocation, or neither: got {self.schedule!r} and "
                f"{self.allocation!r}"
            )
        if self.start != "dense" and self.schedule not in (None, "constant"):
            raise ValueError(
                f"pruning.start: {self.start!r} masks have the target density from the first step, so "
                f"pruning.schedule must be constant, not {self.schedule}"
            )
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"pruning.alpha: {self.alpha} is not in [0, 1]")
        if self.alpha > 0 and self.grow is None:
            raise ValueError(
                f"pruning.alpha: {self.alpha} drops weights, but the method has nothing to grow by; it must be 0"
            )
        if self.soft_threshold and self.alpha > 0:
            raise ValueError(
                f"pruning.alpha: {self.alpha}; pruned weights of a soft threshold go on learning and come "
                "back by themselves, so it must be 0"
            )
        if self.soft_threshold and self.drop != "magnitude":
            raise ValueError(f"pruning.drop: {self.drop}; a soft threshold cuts by magnitude")
        if not self.rank_lambda >= 0:
            raise ValueError(f"rank.lambda: {self.rank_lambda} is negative")
        if self.rank_share is not None and not 0 <= self.rank_share < 1:
            raise ValueError(f"rank.share: {self.rank_share} is not in [0, 1)")
        if not 0 < self.rank_delta <= 1:
            raise ValueError(f"rank.delta: {self.rank_delta} is not in (0, 1]")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"train.clip_norm: {self.clip_norm} is not above 0")

    @property
    def prunes(self) -> bool:
        """Whether masks are ever drawn."""
        return self.schedule is not None

    @property
    def updates(self) -> bool:
        """Whether the topology changes after the first step."""
        return self.prunes and (self.start == "dense" or self.alpha > 0)


METHODS: dict[str, Method] = {
    # Rank-based pruninG, with the numbers of its 90 % ResNet-50 (arXiv 2311.17493)
    "rpg": Method("exponential", "global", grow="gradient", alpha=0.3, rank_lambda=0.5, rank_delta=0.1),
    # The default, our variant for short training: RPG's drop and grow with rank term, but the target is reached early,
    # by a cubic density schedule, so that more steps are left at it, and ERK's counts in place of one magnitude cut,
    # which leave small layers more. Chosen on training images of CIFAR-10.
    "rpg_erk": Method("cubic", "erk", grow="gradient", alpha=0.3, prune_until=0.6, rank_lambda=0.5, rank_delta=0.1),
    # Gradual magnitude pruning (Zhu & Gupta 2017, arXiv 1710.01878), the cut made in the whole network or in
    # every layer. The baseline in RPG's released code is the first with the exponential density schedule.
    "gmp": Method("cubic", "global"),
    "gmp_uniform": Method("cubic", "uniform"),
    # One-shot magnitude pruning, then fine-tuning (Han et al. 2015, arXiv 1506.02626, one iteration of it, with
    # one cut for the network): for pretrained weights.
    "one_shot": Method("constant", "global", start="magnitude"),
    # A random Erdős–Rényi-kernel mask that never changes (the "static" of Evci et al. 2020, arXiv 1911.11134)
    "static": Method("constant", "erk", start="random"),
    # Sparse evolutionary training (Mocanu et al. 2018, arXiv 1707.04780): after every epoch 30 % of each layer
    # are replaced at random.
    "set": Method(
        "constant", "erk", "random", grow="random", alpha=0.3, drop_decay="constant", update_every=0, freeze_after=1.0
    ),
    # The rigged lottery (Evci et al. 2020, arXiv 1911.11134, section 3)
    "rigl": Method("constant", "erk", start="random", grow="gradient", alpha=0.3, prune_until=0.75, freeze_after=0.75),
    # Gradual pruning with zero-cost neuroregeneration, dense to sparse (Liu et al. 2021, arXiv 2106.10404), with the
    # calendar of its ImageNet runs; their interval of 4,000 steps is too long for short runs.
    "granet": Method("cubic", "global", grow="gradient", alpha=0.5, prune_until=0.3, freeze_after=1.0),
    # Alternating compressed and decompressed training (Peste et al. 2021, arXiv 2106.12379). When a dense phase
    # begins, weights start at zero and all momentum is reset.
    "acdc": Method("alternating", "global", prune_until=0.85),
    # Straight-through training with soft thresholds and rescaling (Vanderschueren & De Vleeschouwer 2023, arXiv
    # 2212.01076): masks are drawn anew at every step. The rescaled weights move up to a hundred times as far as
    # the optimizer's step, and training may diverge unless the gradient is clipped, as in all of the authors'
    # configurations. Published runs begin with five dense epochs (`pruning.warmup_updates`).
    "st3": Method(
        "cubic", "global", soft_threshold=True, update_every=1, prune_until=0.5, freeze_after=1.0, clip_norm=3.0
    ),
    "dense": Method(None, None),
}
