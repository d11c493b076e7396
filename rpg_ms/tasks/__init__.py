"""What a network is trained for: dataset, loss, metric and the figures in summary.json, one object a task."""
from rpg_ms.tasks.classification import Classification

__all__ = ["Classification"]
