"""The adversarial rank term: what it is worth, and its exact gradient."""
from rpg_ms.rank.cell import RankLoss
from rpg_ms.rank.term import BACKENDS, rank_term, rank_terms

__all__ = ["BACKENDS", "RankLoss", "rank_term", "rank_terms"]
