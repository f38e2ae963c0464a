"""Small models of every public implementation, exported once a test session.

    from tests.models import exported

    __all__ = ["exported"]  # the fixture

    def test_something(exported):
        path = exported("timm-v1", "dynamo")

The models are seeded and
random, down to biases, norms and bias tables: what is zero or one from the constructor would hide a rewrite that drops
it. Sizes are the smallest that have all there is to a Swin: shifted and unshifted blocks, several windows, a merging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from swinopt.export import export, randomize  # noqa: E402

EXPORTERS = ("torchscript", "dynamo")
#: In what is said of a Swin: 2 + 1 blocks, one patch merging, a map of 16 x 16 tokens, windows of 4 x 4.
_SIZES: dict[str, Any] = {"embed_dim": 16, "depths": (2, 1), "num_heads": (2, 4), "window_size": 4}


class Pick(torch.nn.Module):
    """A model that answers with one tensor of its output."""

    def __init__(self, model: Any, pick: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, x: Any) -> Any:
        return self.pick(self.model(x))


@dataclass(frozen=True)
class Model:
    """How to build a model, and what is known of it.

    Attributes:
        build: makes the module.
        inputs: makes an example input.
        blocks: how many attention blocks it has that are a Swin's.
        norms: how many LayerNorms it has.
        gelus: how many GELUs it has.
    """

    build: Callable[[], Any]
    inputs: Callable[[], Any]
    blocks: int = 0
    norms: int = 0
    gelus: int = 0


def _image(height: int, width: int) -> Callable[[], Any]:
    return lambda: torch.randn(1, 3, height, width)


def _timm_v1(**options: Any) -> Any:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(**{"img_size": 64, "num_classes": 10, **_SIZES, **options})


def _timm_v2(**options: Any) -> Any:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return SwinTransformerV2(**{"img_size": 64, "num_classes": 10, **_SIZES, **options})


def _timm_v2_cr() -> Any:
    from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr

    return SwinTransformerV2Cr(img_size=64, num_classes=10, **_SIZES)


def _timm_v2_features() -> Any:
    sizes = {**_SIZES, "depths": (2, 2), "out_indices": (0, 1)}
    model = timm.create_model("swinv2_tiny_window8_256", features_only=True, img_size=64, **sizes)
    return Pick(model, lambda maps: maps[-1])


def _hugging_face(version: str, attention: str = "eager") -> Any:
    config = getattr(transformers, f"{version}Config")(image_size=64, num_labels=10, **_SIZES)
    config._attn_implementation = attention
    model = getattr(transformers, f"{version}ForImageClassification")(config)
    return Pick(model, lambda output: output.logits)


def _torchvision(version: int) -> Any:
    from torchvision.models import swin_transformer as swin

    blocks = {1: swin.SwinTransformerBlock, 2: swin.SwinTransformerBlockV2}
    merging = {1: swin.PatchMerging, 2: swin.PatchMergingV2}
    sizes = {**_SIZES, "window_size": [4, 4], "depths": [2, 1], "stochastic_depth_prob": 0.0}
    block, downsample = blocks[version], merging[version]
    return swin.SwinTransformer(patch_size=[4, 4], num_classes=10, block=block, downsample_layer=downsample, **sizes)


def _torchvision_video() -> Any:
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    sizes = {**_SIZES, "window_size": [2, 4, 4], "depths": [2, 1], "stochastic_depth_prob": 0.0}
    return SwinTransformer3d(patch_size=[2, 4, 4], num_classes=10, **sizes)


def _bert() -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=100, max_position_embeddings=32, **sizes)
    config._attn_implementation = "eager"
    return Pick(transformers.BertModel(config), lambda output: output.last_hidden_state)


_SQUARE = _image(64, 64)
#: 9 x 18 tokens, then 5 x 9: no multiple of the window, and an odd map to merge.
_PADDED = _image(36, 72)

SWINS = {
    "timm-v1": Model(_timm_v1, _SQUARE, 3),
    "timm-v1-padded": Model(lambda: _timm_v1(img_size=(36, 72)), _PADDED, 3),
    "timm-v2": Model(_timm_v2, _SQUARE, 3),
    "timm-v2-cr": Model(_timm_v2_cr, _SQUARE, 3),
    "hugging-face-v1": Model(lambda: _hugging_face("Swin"), _SQUARE, 3),
    "hugging-face-v2": Model(lambda: _hugging_face("Swinv2"), _SQUARE, 3),
    "torchvision-v1-padded": Model(lambda: _torchvision(1), _PADDED, 3),
    "torchvision-v2": Model(lambda: _torchvision(2), _SQUARE, 3),
    "torchvision-video": Model(_torchvision_video, lambda: torch.randn(1, 3, 8, 32, 32), 3),
}
OTHERS = {
    "resnet": Model(lambda: timm.create_model("resnet18", num_classes=10), _SQUARE),
    "vit": Model(
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=32, num_heads=2),
        _SQUARE,
        norms=5,
        gelus=2,
    ),
    "convnext": Model(
        lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 16, 32)), _SQUARE, norms=9, gelus=4
    ),
    "bert": Model(_bert, lambda: torch.randint(0, 100, (1, 16)), norms=5, gelus=2),
}
#: Whose inputs may have any height and width.
OPEN = {"timm-v1-open": Model(lambda: _timm_v1(strict_img_size=False, always_partition=True), _SQUARE, 3)}
#: Whose outputs are maps, in front of the norm and the mean that would even out what rounding does to a token.
FEATURES = {"timm-v2-features": Model(_timm_v2_features, _SQUARE, 4)}
MODELS = {**SWINS, **OTHERS, **OPEN, **FEATURES}

#: Where an exported model lies, from the model's name, the exporter, and what :func:`swinopt.export` takes besides.
Exported = Callable[..., Path]


def build(name: str) -> Any:
    """The module of that name, seeded, randomised and in eval mode; its outputs are of order 1."""
    torch.manual_seed(0)
    model = randomize(MODELS[name].build().eval(), seed=0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 2 and "table" not in key:
                # Fresh weights of 0.02 make all activations so small that a wrong one is lost in the tolerance.
                parameter.copy_(torch.randn(parameter.shape) / parameter.shape[1] ** 0.5)
            elif key.endswith(("logit_scale", "tau")):
                # The temperature of Swin V2, one a head: alike for all heads, mixed-up heads would not show.
                parameter.mul_(1 + torch.rand(parameter.shape))
    return model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """Exports a model, or says where it lies if that was done before in this session."""
    folder = tmp_path_factory.mktemp("exported")
    known: dict[str, Path] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def once(name: str, exporter: str, **options: Any) -> Path:
        key = "-".join([name, exporter, *(f"{key}-{value}" for key, value in sorted(options.items()))])
        if key not in known:
            path = folder / f"{key}.onnx"
            # That exports compute what PyTorch does is what the tests of the export are for.
            export(build(name), path, exporter=exporter, inputs=MODELS[name].inputs(), check=False, **options)
            known[key] = path
        return known[key]

    yield once
    torch.set_num_threads(threads)
