"""How a post-LN transformer's kernels are initialized by flax, by torch, by DETR and by T-Fixup, as one table.

The question is that of https://github.com/google/flax/issues/4027: one packed matrix for q, k and v has three times
the fan-out of separate ones, so the same initializer makes it smaller. Everything but the kernels of attention and
feed-forward is the same in all schemes, so that nothing else can explain a difference: object queries N(0, 1) and
heads as DETR has them, zero biases.
"""

from coordcheck.config import Scheme
from coordcheck.initialize import Rule, Std

PACKED = 3.0  # fan-out over fan-in of a matrix that holds q, k and v
# nn.Linear's kaiming_uniform_(a=sqrt(5)) is uniform up to fan_in^-1/2
TORCH_LINEAR = Std(3**-0.5, -0.5)


def kernel_factors(scheme: Scheme, feed_forward_ratio: float) -> dict[str, float]:
    """Std x sqrt(fan_in) of each kernel of a block, before :func:`depth_factor`.

    Args:
        scheme: "lecun_normal", flax.linen's default; "xavier_separate", flax.linen with xavier_uniform;
            "xavier_packed", torch.nn.Transformer and so DETR, whose in_proj_weight is (3 D, D); "torch_layers",
            torch's layers without the Transformer's reset; "t_fixup", Huang et al. 2020, but the norms stay.
        feed_forward_ratio: F / D.

    Returns:
        By the name of the layer: q, k, v, out, fc, proj. Sources: flax ``linen/linear.py``, ``default_kernel_init``;
        torch ``nn/modules/activation.py``, ``MultiheadAttention._reset_parameters``; facebookresearch/detr
        ``models/transformer.py``, ``Transformer._reset_parameters``.
    """
    separate = {
        **dict.fromkeys(("q", "k", "v", "out"), _xavier(1.0)),
        "fc": _xavier(feed_forward_ratio),
        "proj": _xavier(1 / feed_forward_ratio),
    }
    packed = dict.fromkeys(("q", "k", "v"), _xavier(PACKED))
    return {
        Scheme.lecun_normal: dict.fromkeys(separate, 1.0),
        Scheme.xavier_separate: separate,
        Scheme.xavier_packed: separate | packed,
        Scheme.torch_layers: dict.fromkeys(separate, TORCH_LINEAR.factor) | packed,
        Scheme.t_fixup: separate,
    }[scheme]


def _xavier(ratio: float) -> float:
    """Std x sqrt(fan_in) of xavier_uniform: the variance is 2 / (fan_in + fan_out); `ratio` is fan_out / fan_in."""
    return float((2 / (1 + ratio)) ** 0.5)


def depth_factor(scheme: Scheme, part: str, kernel: str, depth: int) -> float:
    """What T-Fixup multiplies v, out and the feed-forward by; 1 elsewhere.

    The authors' code starts from fairseq's q and k, whose std is 1/sqrt(2) of xavier's; their paper from xavier's.
    We follow the paper.

    Args:
        scheme: Who initializes.
        part: "encoder" or "decoder".
        kernel: Name of the layer, as in :func:`kernel_factors`.
        depth: Number of blocks of the part.

    Returns:
        Source: Huang et al. 2020, "Improving Transformer Optimization Through Better Initialization", section 3.2;
        layer6ai-labs/T-Fixup ``fairseq/modules/transformer_layer.py``, ``fixup_initialization``.
    """
    if scheme != Scheme.t_fixup or kernel in ("q", "k"):
        return 1.0
    return float(0.67 * depth**-0.25 if part == "encoder" else (9 * depth) ** -0.25)


def post_ln_rules(scheme: Scheme, *, feed_forward_ratio: float, encoder_depth: int, decoder_depth: int) -> list[Rule]:
    """The table for :class:`coordcheck.models.post_ln.PostLN`.

    Args:
        scheme: Who initializes.
        feed_forward_ratio: F / D.
        encoder_depth: Number of encoder blocks.
        decoder_depth: Number of decoder blocks.

    Returns:
        Rules for :func:`coordcheck.initialize.initialize`.
    """
    shape = "truncated_normal" if scheme == Scheme.lecun_normal else "uniform"
    kernels = [
        Rule(
            "hidden",
            rf"^{part}\..*\.{kernel}\.weight$",
            Std(factor * depth_factor(scheme, part, kernel, depth), -0.5),
            distribution=shape,
        )
        for part, depth in (("encoder", encoder_depth), ("decoder", decoder_depth))
        for kernel, factor in kernel_factors(scheme, feed_forward_ratio).items()
    ]
    return [
        *kernels,
        Rule("input", r"^queries\.weight$", Std(1.0)),
        Rule("input", r"^input\.weight$", TORCH_LINEAR, distribution="uniform"),
        Rule("hidden", r"^box_fc_\d\.weight$", TORCH_LINEAR, distribution="uniform"),
        Rule("readout", r"_head\.weight$", TORCH_LINEAR, distribution="uniform"),
        Rule("vector", r"\.weight$", mean=1.0),
        Rule("vector", r"\.bias$"),
        Rule("fixed", r"\.bias$"),  # of a readout, whose size is not the width
    ]
