"""The adversarial rank term: what it is worth, and its exact gradient; and the rank that weights have."""

from __future__ import annotations

from rpg_ms.rank.cell import RankLoss
from rpg_ms.rank.numeric import full_rank, mean_rank, numeric_rank
from rpg_ms.rank.term import BACKENDS, rank_term, rank_terms
