"""The passes: one file, one idea. Each is useful alone on any ONNX model."""

from swinopt.passes.eliminate_noops import EliminateNoops
from swinopt.passes.flatten_tokens import FlattenTokens
from swinopt.passes.fold_attention_bias import FoldAttentionBias
from swinopt.passes.fold_constants import FoldConstants
from swinopt.passes.fold_query_scale import FoldQueryScale
from swinopt.passes.fold_window_partition import FoldWindowPartition
from swinopt.passes.fuse_add_layer_norm import FuseAddLayerNorm
from swinopt.passes.fuse_bias_gelu import FuseBiasGelu
from swinopt.passes.fuse_gelu import FuseGelu
from swinopt.passes.fuse_layer_norm import FuseLayerNorm
from swinopt.passes.fuse_linear import FuseLinear
from swinopt.passes.fuse_norm import FuseNorm
from swinopt.passes.fuse_patch_merging import FusePatchMerging
from swinopt.passes.fuse_window_attention import FuseWindowAttention
from swinopt.passes.simplify_movement import SimplifyMovement
from swinopt.passes.simplify_patch_embedding import SimplifyPatchEmbedding
from swinopt.passes.simplify_patch_merging import SimplifyPatchMerging
from swinopt.passes.simplify_pooling import SimplifyPooling
from swinopt.passes.sink_token_views import SinkTokenViews
from swinopt.passes.spell_out_gelu import SpellOutGelu
from swinopt.passes.spell_out_linear import SpellOutLinear
from swinopt.passes.spell_out_norm import SpellOutNorm

#: All of them, for the registry.
ALL = (
    EliminateNoops,
    FlattenTokens,
    FoldAttentionBias,
    FoldConstants,
    FoldQueryScale,
    FoldWindowPartition,
    FuseAddLayerNorm,
    FuseBiasGelu,
    FuseGelu,
    FuseLayerNorm,
    FuseLinear,
    FuseNorm,
    FusePatchMerging,
    FuseWindowAttention,
    SimplifyMovement,
    SimplifyPatchEmbedding,
    SimplifyPatchMerging,
    SimplifyPooling,
    SinkTokenViews,
    SpellOutGelu,
    SpellOutLinear,
    SpellOutNorm,
)

__all__ = [
    "ALL",
    "EliminateNoops",
    "FlattenTokens",
    "FoldAttentionBias",
    "FoldConstants",
    "FoldQueryScale",
    "FoldWindowPartition",
    "FuseAddLayerNorm",
    "FuseBiasGelu",
    "FuseGelu",
    "FuseLayerNorm",
    "FuseLinear",
    "FuseNorm",
    "FusePatchMerging",
    "FuseWindowAttention",
    "SimplifyMovement",
    "SimplifyPatchEmbedding",
    "SimplifyPatchMerging",
    "SimplifyPooling",
    "SinkTokenViews",
    "SpellOutGelu",
    "SpellOutLinear",
    "SpellOutNorm",
]
