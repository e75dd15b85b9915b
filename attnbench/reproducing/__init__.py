"""Published figures computed again: every row built as its source describes it, on tensors without memory."""

from attnbench.reproducing.build import Built, modules
from attnbench.reproducing.compute import compute, reproduce
from attnbench.reproducing.heads import zoo_entries

__all__ = ["Built", "compute", "modules", "reproduce", "zoo_entries"]
