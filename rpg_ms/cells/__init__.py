"""MindSpore cells: masked layers and the train-one-step cell."""

from __future__ import annotations

from rpg_ms.cells.average import WeightAverage
from rpg_ms.cells.distilled import Distilled
from rpg_ms.cells.masked import MaskedConv2d, MaskedDense, MaskedLayer, Sparsified, sparsify
from rpg_ms.cells.rank_term import RankTerm
from rpg_ms.cells.soft_threshold import SoftThreshold
from rpg_ms.cells.train_step import SparseTrainStep, StepOptions
