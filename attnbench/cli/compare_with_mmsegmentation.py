"""`compare_with_mmsegmentation.py`: every supported head against an installed mmsegmentation."""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from attnbench.cli.arguments import Parser
from attnbench.errors import UsageError
from attnbench.models.mmseg import decode_head, load_checkpoint, segmentor
from attnbench.models.mmseg.config import PUBLISHED, published_head

PROG = "compare_with_mmsegmentation.py"
TOLERANCE = 1e-4
_CLASSES = 7
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "ANNHead": {"in_channels": [32, 64], "project_channels": 16},
    "DAHead": {"pam_channels": 8},
    "DepthwiseSeparableASPPHead": {"c1_in_channels": 16, "c1_channels": 8, "in_index": 1},
    "EMAHead": {"ema_channels": 64, "num_bases": 8},
    "EncHead": {"in_channels": [16, 32, 64], "num_codes": 8, "add_lateral": True},
    "ISAHead": {"isa_channels": 16, "down_factor": (4, 4)},
    "LightHamHead": {"in_channels": [16, 32, 64], "ham_channels": 32, "ham_kwargs": {"MD_R": 8, "rand_init": False}},
    "OCRHead": {"ocr_channels": 16},
    "PSAHead": {"mask_size": (9, 9)},
}
_COMPILED = "mmcv's compiled part is not installed"


def _parser() -> Parser:
    parser = Parser(
        PROG,
        "Compare every supported decode head, and whole networks through a checkpoint file, with an installed "
        "mmsegmentation: logits at random weights, and parameters at published sizes.",
    )
    parser.add_argument("--heads", nargs="+", metavar="TYPE", help="heads to compare (default: all)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares and prints a table; 0 where everything agrees, 1 where something does not."""
    parsed = _parser().parse(arguments)
    unknown = sorted(set(parsed.heads or ()) - set(PUBLISHED))
    if unknown:
        raise UsageError(f"--heads: expected some of {', '.join(PUBLISHED)}, got {unknown[0]!r}")
    models = _import_mmsegmentation()
    table = Table("what", "largest difference", "parameters", "theirs", "")
    agreed = True
    for kind in parsed.heads or PUBLISHED:
        ours, theirs = _compare_sizes(models, kind)
        try:
            difference = _compare_head(models, kind)
        except _NotCompiledError:
            agreed &= ours == theirs
            table.add_row(kind, "skipped", str(ours), str(theirs), _COMPILED)
            continue
        same = difference < TOLERANCE and ours == theirs
        agreed &= same
        table.add_row(kind, f"{difference:.1e}", str(ours), str(theirs), "same" if same else "DIFFERENT")
    if parsed.heads is None:
        for backbone, cascade in (("ResNet", False), ("ResNetV1c", True), ("ResNetV1d", False)):
            difference = _compare_network(models, backbone, cascade)
            same = difference < TOLERANCE
            agreed &= same
            what = f"{backbone}-50, {'FCN and OCR' if cascade else 'CC'}, from a file"
            table.add_row(what, f"{difference:.1e}", "", "", "same" if same else "DIFFERENT")
    Console().print(table)
    return 0 if agreed else 1


class _NotCompiledError(Exception):
    """Something that only mmcv's compiled part can do."""


def _import_mmsegmentation() -> Any:
    """The registry of an installed mmsegmentation.

    mmcv-lite lacks a compiled module, without which mmsegmentation cannot be imported although only PSAHead calls it;
    its place is taken by one whose functions raise.
    """
    try:
        importlib.import_module("mmcv")
        try:
            importlib.import_module("mmcv._ext")
        except ImportError:
            sys.modules["mmcv._ext"] = _Uncompiled("mmcv._ext")
        importlib.import_module("mmseg.models")
        return importlib.import_module("mmseg.registry").MODELS
    except ImportError as error:
        raise UsageError(
            "expected an installed mmsegmentation (pip install mmsegmentation==1.2.2 mmengine mmcv-lite==2.1.0, "
            f"see docs/mmsegmentation.md), got {error}"
        ) from error


class _Uncompiled(types.ModuleType):
    """Has every function, and none that works."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def fail(*_: object, **__: object) -> NoReturn:
            raise _NotCompiledError(name)

        return fail


def _compare_sizes(models: Any, kind: str) -> tuple[int, int]:
    """Parameters of our head and of theirs at the published size."""
    published = published_head(kind, 19)
    with torch.device("meta"):
        return _parameters(decode_head(published)), _parameters(models.build(published))


def _compare_head(models: Any, kind: str) -> float:
    """Largest difference of the logits at a small size."""
    torch.manual_seed(0)
    small = {"in_channels": 64, "channels": 32, "num_classes": _CLASSES, "norm_cfg": {"type": "BN"}}
    config = {**published_head(kind, _CLASSES), **small, "in_index": -1, **_SMALL.get(kind, {})}
    widths = config["in_channels"] if isinstance(config["in_channels"], list) else [config["in_channels"]]
    if kind == "DepthwiseSeparableASPPHead":
        widths = [config["c1_in_channels"], *widths]
    elif len(widths) > 1:
        config["in_index"] = list(range(len(widths)))
    theirs = models.build(config).eval()
    inputs = [torch.randn(2, width, 13, 17) for width in widths]
    prior = (torch.randn(2, _CLASSES, 13, 17),) if kind == "OCRHead" else ()
    with torch.no_grad():
        # LightHamHead has its bases from its first forward pass on.
        theirs(inputs, *prior)
        _randomise(theirs)
        expected = theirs(inputs, *prior)
        got = decode_head(config, theirs.state_dict()).eval()(inputs, *prior)
    return _difference(got, expected[0] if isinstance(expected, tuple) else expected)


def _compare_network(models: Any, backbone: str, cascade: bool) -> float:
    """Largest difference between a network and its checkpoint file read without a configuration."""
    torch.manual_seed(0)
    norm = {"norm_cfg": {"type": "BN"}}
    layout = {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "contract_dilation": True}
    common = {"channels": 32, "num_classes": _CLASSES, **norm}
    convolution = {"type": "FCNHead", "in_channels": 64, "in_index": 2, "num_convs": 1, "concat_input": False, **common}
    heads = ["OCRHead" if cascade else "CCHead"]
    head = {"type": heads[0], "in_channels": 128, "in_index": 3, **common}
    config: dict[str, Any] = {
        "type": "CascadeEncoderDecoder" if cascade else "EncoderDecoder",
        "backbone": {"type": backbone, "depth": 50, "base_channels": 4, **layout, **norm},
        "decode_head": [convolution, {**head, "ocr_channels": 16}] if cascade else head,
        "auxiliary_head": None if cascade else convolution,
        **({"num_stages": 2} if cascade else {}),
    }
    theirs = models.build({**config, "test_cfg": {"mode": "whole"}}).eval()
    _randomise(theirs)
    images = torch.randn(1, 3, 65, 97)
    size = {"img_shape": tuple(images.shape[-2:]), "ori_shape": tuple(images.shape[-2:])}
    with torch.no_grad():
        expected = theirs.encode_decode(images, [size])
        direct = segmentor(config, theirs.state_dict()).eval()(images)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pth"
            torch.save(_as_written(theirs.state_dict()), path)
            read = load_checkpoint(path)(images)
    return max(_difference(direct, expected), _difference(read, expected))


def _as_written(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A checkpoint with what mmengine's runner writes into it beside the weights."""
    hub = importlib.import_module("mmengine.logging").MessageHub.get_instance("attnbench")
    hub.update_scalar("train/loss", 0.5)
    hub.update_info("epoch", 1)
    return {"meta": {"epoch": 1, "iter": 1}, "state_dict": state, "message_hub": hub.state_dict()}


def _randomise(module: nn.Module) -> None:
    """Draws every parameter and statistic, so that a branch that starts at zero hides nothing."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith(("running_var", "bases")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim > 1:
                nn.init.normal_(tensor, std=(2 / tensor[0].numel()) ** 0.5)
            else:
                tensor.normal_(0.2, 0.5)


def _difference(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max())


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
