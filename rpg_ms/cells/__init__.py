"""MindSpore cells: masked layers and the train-one-step cell."""
from rpg_ms.cells.masked import MaskedConv2d, MaskedDense, MaskedLayer, Skipped, Sparsified, sparsify
from rpg_ms.cells.soft_threshold import SoftThreshold
from rpg_ms.cells.train_step import SparseTrainStep, TopologyRecord, WeightAverage

__all__ = ["MaskedConv2d", "MaskedDense", "MaskedLayer", "Skipped", "SoftThreshold", "SparseTrainStep",
           "Sparsified", "TopologyRecord", "WeightAverage", "sparsify"]
