"""Pictures for a reader's own eyes: predictions and errors, where operators look, and what their bases hold."""

from attnbench.pictures.attention import attention_sheet, heads_sheet
from attnbench.pictures.bases import ROWS, bases_sheet, stages_sheet, telling_bases
from attnbench.pictures.board import FORMATS, Sheet
from attnbench.pictures.colours import coloured, enlarged, error_map, overlay
from attnbench.pictures.networks import Trained, look, score_saved, slot, train
from attnbench.pictures.predictions import predictions_sheet
from attnbench.pictures.scenes import Scene, place_on_map, scenes_of, telling_pixel

__all__ = [
    "FORMATS",
    "ROWS",
    "Scene",
    "Sheet",
    "Trained",
    "attention_sheet",
    "bases_sheet",
    "coloured",
    "enlarged",
    "error_map",
    "heads_sheet",
    "look",
    "overlay",
    "place_on_map",
    "predictions_sheet",
    "scenes_of",
    "score_saved",
    "slot",
    "stages_sheet",
    "telling_bases",
    "telling_pixel",
    "train",
]
