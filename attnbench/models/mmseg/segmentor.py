"""mmsegmentation's networks: backbone, one decode head or a cascade of them, auxiliary heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.config import WHOLE, Inference, near
from attnbench.errors import UsageError
from attnbench.models.backbone import ResNet
from attnbench.models.mmseg.backbone import build_backbone
from attnbench.models.mmseg.build import build_head
from attnbench.models.mmseg.checkpoint import Checkpoint, read_checkpoint
from attnbench.models.mmseg.heads import MMSegHead
from attnbench.models.mmseg.infer import infer_segmentor, written_config
from attnbench.models.mmseg.names import Names, load, prefixed
from attnbench.ranges import check_inference

_TYPES = ("EncoderDecoder", "CascadeEncoderDecoder")
_KNOWN = ("type", "num_stages", "backbone", "decode_head", "auxiliary_head", "neck", "test_cfg")
_TRAINING = ("train_cfg", "data_preprocessor", "pretrained", "init_cfg")
_PREPROCESSING = "data_preprocessor."


class MMSegSegmentor(nn.Module):
    """Backbone, decode heads one behind the other, bilinear resize to the image.

    Each head after the first also takes the logits of the one before.

    Args:
        backbone: from images to the feature maps of four stages.
        depth: its depth.
        decode_heads: from feature maps to logits.
        auxiliary_heads: heads whose losses train the network; they do not run here.
        inference: how its configuration wants images to be read; a forward pass reads what it is given at once.

    Shape:
        `(B, 3, H, W) -> (B, num_classes, H, W)`.
    """

    def __init__(
        self,
        backbone: ResNet,
        depth: int,
        decode_heads: Sequence[MMSegHead],
        auxiliary_heads: Sequence[MMSegHead] = (),
        inference: Inference = WHOLE,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_heads = nn.ModuleList(decode_heads)
        self.auxiliary_heads = nn.ModuleList(auxiliary_heads)
        self.align_corners = decode_heads[-1].align_corners
        self.depth = depth
        self.inference = inference

    def forward(self, images: Tensor) -> Tensor:
        """Logits at image size."""
        maps = self.backbone.stages(images)
        logits: Tensor | None = None
        for head in self.decode_heads:
            logits = head(maps, logits)
        assert logits is not None
        size = images.shape[-2:]
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=self.align_corners)


def segmentor(config: Mapping[str, Any], state_dict: Mapping[str, Tensor] | None = None) -> MMSegSegmentor:
    """The network that mmsegmentation builds from `config`.

    Args:
        config: configuration of an EncoderDecoder or a CascadeEncoderDecoder.
        state_dict: its parameters under mmsegmentation's names; none for freshly initialised ones.

    Shape:
        `(B, 3, H, W) -> (B, num_classes, H, W)`.

    Raises:
        UsageError: if a part is not supported, or keys are left over or missing.

    Deviations:
        A forward pass reads the whole image, also where `test_cfg` asks for a sliding window: the network's `inference`
        says so, and `attnbench.evaluation.segment` follows it.
    """
    kind = config.get("type")
    if kind not in _TYPES:
        raise UsageError(f"network: expected one of {', '.join(_TYPES)}, got {kind!r}")
    for key in config:
        if key not in _KNOWN and key not in _TRAINING:
            raise UsageError(f"{kind}: unknown key {key!r}{near(key, _KNOWN)}")
    for key in ("backbone", "decode_head"):
        if not config.get(key):
            raise UsageError(f"{kind}: expected {key}, got a configuration without it")
    if config.get("neck") is not None:
        raise UsageError(f"{kind}: expected no neck, got {config['neck']!r}")
    inference = _inference(config.get("test_cfg") or {})
    backbone, names = build_backbone(config["backbone"])
    names = prefixed(names, "backbone.", "backbone.")
    cascade = kind == "CascadeEncoderDecoder"
    decode_heads, of_heads = _heads(config["decode_head"], "decode_head", cascade)
    if config.get("num_stages", len(decode_heads)) != len(decode_heads):
        raise UsageError(f"{kind}: expected {config['num_stages']} decode heads, got {len(decode_heads)}")
    auxiliary = config.get("auxiliary_head") or []
    auxiliary_heads, of_auxiliary = _heads(auxiliary, "auxiliary_head", isinstance(auxiliary, list | tuple))
    network = MMSegSegmentor(backbone, config["backbone"]["depth"], decode_heads, auxiliary_heads, inference)
    if state_dict is not None:
        # The mean and deviation that images are normalised by, which the dataset brings along here.
        weights = {name: tensor for name, tensor in state_dict.items() if not name.startswith(_PREPROCESSING)}
        load(network, weights, {**names, **of_heads, **of_auxiliary}, str(kind))
    return network


def _inference(config: Mapping[str, Any]) -> Inference:
    """How `test_cfg` wants images to be read."""
    mode = config.get("mode", "whole")
    if mode != "slide":
        if mode != "whole":
            raise UsageError(f"test_cfg: expected mode 'whole' or 'slide', got {mode!r}")
        return WHOLE
    sizes = {name: config.get(name) for name in ("crop_size", "stride")}
    for name, value in sizes.items():
        if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(side) is int for side in value):
            raise UsageError(f"test_cfg, {name}: expected a height and width for mode 'slide', got {value!r}")
    inference = Inference("slide", **{name: tuple(value) for name, value in sizes.items()})  # type: ignore[arg-type]
    check_inference(inference)
    return inference


def _heads(configs: Any, place: str, several: bool) -> tuple[list[MMSegHead], Names]:
    """The heads at `place`, numbered in their names where there are several."""
    if several != isinstance(configs, list | tuple):
        expected = "a list of heads" if several else "one head"
        raise UsageError(f"{place}: expected {expected}, got {type(configs).__name__}")
    heads: list[MMSegHead] = []
    names: Names = {}
    for index, config in enumerate(configs if several else [configs]):
        head, own = build_head(config)
        heads.append(head)
        theirs = f"{place}.{index}." if several else f"{place}."
        names |= prefixed(own, theirs, f"{place}s.{index}.")
    return heads, names


def load_checkpoint(path: str | Path, config: Mapping[str, Any] | None = None) -> MMSegSegmentor:
    """The network in the checkpoint file `path`, as mmsegmentation 0.x or 1.x wrote it, in evaluation mode.

    No code from the file runs: tensors and plain data load, what mmengine, mmcv and numpy wrote about training is left
    out, and anything else is refused by its name. Its configuration, where it stands in the file as text, is read as
    data, never executed.

    Args:
        path: the file.
        config: the network's configuration; by default type, depth and widths are read off the names and shapes of the
            weights. What leaves no trace there (EM stages, recurrence, pooling scales, dilations) is taken from the
            file's own configuration, otherwise from the published one, and logged.

    Raises:
        UsageError: if the file cannot be read, names anything but tensors, plain data and what may be left out, or
            holds a network that is not supported; if a key is left over or missing.
    """
    return from_checkpoint(read_checkpoint(path), config)


def from_checkpoint(checkpoint: Checkpoint, config: Mapping[str, Any] | None = None) -> MMSegSegmentor:
    """The network in a checkpoint that was read already; see `load_checkpoint`."""
    if config is None:
        config = infer_segmentor(checkpoint.state_dict, written_config(checkpoint.meta))
    return segmentor(config, checkpoint.state_dict).eval()
