"""Figures that papers and mmsegmentation's zoo print, with settings, units and sources. Plain data: no torch, no code.

`complexity.csv` holds parameters, FLOPs, memory and time as printed, together with how the project reads them: what it
builds for a row, in which units the row counts, what it leaves out, and what was tried where nothing fits. `zoo.csv`
holds the accuracy, training memory and speed that mmsegmentation publishes. Both were read in the sources they name.
"""

from attnbench.published.figures import Figure, load_figures
from attnbench.published.outcomes import Computed, Outcome
from attnbench.published.zoo import HEADS, ZooEntry, ZooRow, load_zoo, shown

__all__ = ["HEADS", "Computed", "Figure", "Outcome", "ZooEntry", "ZooRow", "load_figures", "load_zoo", "shown"]
