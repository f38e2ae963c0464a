"""The passes: one file, one idea. Each is useful alone on any ONNX model."""

from swinopt.passes.eliminate_noops import EliminateNoops
from swinopt.passes.fold_constants import FoldConstants
from swinopt.passes.fuse_gelu import FuseGelu
from swinopt.passes.fuse_layer_norm import FuseLayerNorm
from swinopt.passes.fuse_window_attention import FuseWindowAttention
from swinopt.passes.simplify_movement import SimplifyMovement
from swinopt.passes.sink_token_views import SinkTokenViews
from swinopt.passes.spell_out_gelu import SpellOutGelu

ALL = (
    EliminateNoops,
    FoldConstants,
    FuseGelu,
    FuseLayerNorm,
    FuseWindowAttention,
    SimplifyMovement,
    SinkTokenViews,
    SpellOutGelu,
)

__all__ = [kind.__name__ for kind in ALL]
