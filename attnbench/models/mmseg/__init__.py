"""mmsegmentation's decode heads, networks and checkpoint files, on the project's operators.

`decode_head(config)` and `segmentor(config)` build what mmsegmentation builds and compute its numbers;
`load_checkpoint(path)` reads the files that it writes, without running anything that is in them.
"""

from attnbench.models.mmseg.build import decode_head
from attnbench.models.mmseg.checkpoint import Checkpoint, read_checkpoint
from attnbench.models.mmseg.segmentor import load_checkpoint, segmentor

__all__ = ["Checkpoint", "decode_head", "load_checkpoint", "read_checkpoint", "segmentor"]
