"""What each runtime takes, and the pipeline that gets a model there."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from swinopt.errors import OptionError
from swinopt.pipeline import Pipeline


@dataclass(frozen=True)
class Target:
    """A runtime, or a family of them.

    Attributes:
        name: what users call it.
        description: one line for people.
        opset: the standard opset that models are brought up to before anything else; newer ones are left.
        newest_opset: the newest opset that the runtime's parser reads; None if it is not known to have a limit.
        plugins: whether plugins run the swinopt ops; each then names the plugin's namespace and version.
        bodies: whether custom ops come with their function bodies.
        build: makes the pipeline.
    """

    name: str
    description: str
    opset: int
    newest_opset: int | None
    plugins: bool
    bodies: bool
    build: Callable[[], Pipeline]


def _normalise() -> Pipeline:
    from swinopt import passes

    return Pipeline(passes.FoldConstants(), passes.EliminateNoops(), passes.FuseLayerNorm())


def _fuse_attention() -> Pipeline:
    from swinopt import passes

    return Pipeline(
        passes.FoldAttentionBias(),
        passes.SimplifyPatchMerging(),
        passes.SinkTokenViews(),
        passes.FuseWindowAttention(),
        # Views that stood before a partition are free now.
        passes.SinkTokenViews(),
    )


def _tidy() -> Pipeline:
    from swinopt import passes

    # After the attention is fused, not before: window attention takes the scale as an attribute and keeps the weights.
    return Pipeline(
        passes.FoldQueryScale(), passes.SimplifyPooling(), passes.SimplifyMovement(), passes.EliminateNoops()
    )


def _tensorrt() -> Pipeline:
    from swinopt import passes

    return _normalise().then(passes.FuseGelu(), _fuse_attention(), _tidy())


def _tensorrt_8_6() -> Pipeline:
    from swinopt import passes

    return _normalise().then(passes.SpellOutGelu(), _fuse_attention(), _tidy(), passes.FlattenTokens())


def _portable() -> Pipeline:
    from swinopt import passes

    return _normalise().then(passes.FuseGelu(), _fuse_attention(), passes.FoldWindowPartition(), _tidy())


def _onnxruntime() -> Pipeline:
    from swinopt import passes

    return _portable().then(passes.FuseBiasGelu())


TARGETS = {
    target.name: target
    for target in (
        Target("portable", "standard ONNX ops only, for any runtime", 17, None, False, True, _portable),
        Target("onnxruntime", "standard ops and those of com.microsoft", 17, None, False, True, _onnxruntime),
        Target("tensorrt", "TensorRT 10 and newer, with the swinopt plugins", 20, None, True, True, _tensorrt),
        Target("tensorrt-8.6", "TensorRT 8.6, with the swinopt plugins", 17, 17, True, False, _tensorrt_8_6),
    )
}


def find(name: str) -> Target:
    """The target of that name.

    Raises:
        OptionError: there is none.
    """
    if name in TARGETS:
        return TARGETS[name]
    close = difflib.get_close_matches(str(name), TARGETS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(TARGETS)}"
    raise OptionError(f"there is no target {name!r}; {hint}")
