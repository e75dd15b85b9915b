"""Heads that are the shared `DecodeHead` with an operator in its slot."""

from __future__ import annotations

from attnbench.errors import UsageError
from attnbench.models.heads import FCNHead
from attnbench.models.mmseg.config import HeadConfig, expect
from attnbench.models.mmseg.names import conv_norm, prefixed
from attnbench.models.mmseg.parts import Built, divisor, slot
from operators.controls import Identity
from operators.criss_cross import CrissCross
from operators.disentangled import DisentangledNonLocal
from operators.ema import EMAUnit
from operators.global_context import GlobalContext
from operators.non_local import NonLocal


def fcn(config: HeadConfig) -> Built:
    """Two 3x3 convolutions with nothing between them, or one."""
    expect(config, "num_convs", (1, 2))
    if config.options["num_convs"] == 2:
        return slot(config, Identity(config.channels), {})
    expect(config, "concat_input", (False,))
    expect(config, "kernel_size", (3,))
    expect(config, "dilation", (1,))
    head = FCNHead(config.features, config.out_channels, config.channels, dropout=config.dropout)
    return head, conv_norm("convs.0", "conv")


def ema(config: HeadConfig) -> Built:
    """EMANet."""
    options = config.options
    operator = EMAUnit(
        options["ema_channels"],
        num_bases=options["num_bases"],
        stages=options["num_stages"],
        momentum=options["momentum"],
    )
    head, names = slot(config, operator, {})
    unit = {
        "ema_mid_conv.conv": "conv_in",
        "ema_module": "core",
        **{f"ema_out_conv.{theirs}": ours for theirs, ours in (("conv", "conv_out"), ("bn", "norm"))},
    }
    return head, {
        **conv_norm("ema_in_conv", "reduction"),
        **conv_norm("bottleneck", "bottleneck"),
        **{theirs: ours for theirs, ours in names.items() if theirs.startswith("conv_cat")},
        **prefixed(unit, "", "operator."),
    }


def non_local(config: HeadConfig) -> Built:
    """Non-local networks."""
    options = config.options
    operator = NonLocal(
        config.channels, reduction=options["reduction"], pairwise=options["mode"], scale=options["use_scale"]
    )
    names = {f"nl_block.{name}.conv": name for name in ("theta", "phi", "g")}
    names |= {"nl_block.conv_out.conv": "conv_out", "nl_block.conv_out.bn": "norm"}
    return slot(config, operator, {**names, "nl_block.concat_project.conv": "core.concat"})


def criss_cross(config: HeadConfig) -> Built:
    """CCNet."""
    names = {f"cca.{name}_conv": name for name in ("query", "key", "value")}
    operator = CrissCross(config.channels, recurrence=config.options["recurrence"])
    return slot(config, operator, {**names, "cca.gamma.scale": "gamma"})


def global_context(config: HeadConfig) -> Built:
    """GCNet."""
    options = config.options
    fusions = {("channel_add",): "add", ("channel_mul",): "mul", ("channel_add", "channel_mul"): "both"}
    fusion = fusions.get(tuple(sorted(options["fusion_types"])))
    if fusion is None:
        raise UsageError(f"GCHead: expected fusion_types of channel_add, channel_mul, got {options['fusion_types']}")
    expect(config, "pooling_type", ("att", "avg"))
    operator = GlobalContext(
        config.channels,
        reduction=divisor(config, config.channels, int(config.channels * options["ratio"])),
        fusion=fusion,  # type: ignore[arg-type]
        pooling="attention" if options["pooling_type"] == "att" else "average",
    )
    names = {"conv_mask": "mask", "channel_add_conv": "add", "channel_mul_conv": "multiply"}
    return slot(config, operator, prefixed(names, "gc_block.", ""))


def disentangled(config: HeadConfig) -> Built:
    """Disentangled non-local networks."""
    options = config.options
    operator = DisentangledNonLocal(
        config.channels,
        reduction=options["reduction"],
        pairwise=options["mode"],
        scale=options["use_scale"],
        temperature=options["temperature"],
    )
    names = {f"dnl_block.{theirs}.conv": ours for theirs, ours in (("theta", "query"), ("phi", "key"), ("g", "value"))}
    names |= {"dnl_block.conv_mask": "mask", "dnl_block.conv_out.conv": "conv_out", "dnl_block.conv_out.bn": "norm"}
    return slot(config, operator, names)
