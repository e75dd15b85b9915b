"""Evaluation: how a trained network reads images of any size, and what it scores on a dataset."""

from attnbench.evaluation.boundary import BoundaryScore
from attnbench.evaluation.inference import Reading, evaluating, segment
from attnbench.evaluation.scoring import evaluate

__all__ = ["BoundaryScore", "Reading", "evaluate", "evaluating", "segment"]
