"""PatchMerging: the reference against torch, and what its maps alone ask of the plan (see test_norm_plans.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swinopt.cuda_plugins.launch import Tensor, Unsupported
from swinopt.cuda_plugins.patch_merging.reference import patch_merging
from tests.cuda_plugins import host_compiler
from tests.cuda_plugins.norms import PATCH_MERGING

# --------------------------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (5, 3), (1, 1), (1, 4)], ids=str)
def test_the_reference_is_what_torch_computes(size: tuple[int, int]) -> None:
    """Against unfold, which orders the features (c, dy, dx), and torch's norm."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    x, gamma, beta = random.normal(3, 1, (2, *size, 3)), random.standard_normal(12), random.standard_normal(12)
    padded = torch.nn.functional.pad(torch.from_numpy(x), (0, 0, 0, size[1] % 2, 0, size[0] % 2))
    columns = torch.nn.functional.unfold(padded.permute(0, 3, 1, 2), 2, stride=2)  # [B, C * dy * dx, L]
    merged = columns.reshape(2, 3, 4, -1).permute(0, 3, 2, 1).reshape(2, -(-size[0] // 2), -(-size[1] // 2), 12)
    weight, bias = torch.from_numpy(gamma), torch.from_numpy(beta)
    wanted = torch.nn.functional.layer_norm(merged, (12,), weight, bias, 1e-3).numpy()
    np.testing.assert_allclose(patch_merging(x, gamma, beta, epsilon=1e-3), wanted, rtol=1e-12, atol=1e-12)


def test_the_reference_keeps_the_dtype() -> None:
    ones, zeros = np.ones(4, np.float16), np.zeros(4, np.float16)
    merged = patch_merging(np.float16([[[[1], [-1]], [[1], [-1]]]]), ones, zeros, epsilon=0.0)
    assert merged.dtype == np.float16 and merged.tolist() == [[[[1, -1, 1, -1]]]]


@pytest.mark.parametrize("wrong", [{"x": (4, 4, 2)}, {"gamma": (2,)}, {"beta": (1,)}], ids=str)
def test_the_reference_refuses_shapes_that_do_not_fit(wrong: dict[str, tuple[int, ...]]) -> None:
    shapes = {"x": (1, 4, 4, 2), "gamma": (8,), "beta": (8,), **wrong}
    with pytest.raises(ValueError, match="shapes do not fit"):
        patch_merging(*(np.zeros(shape) for shape in shapes.values()))


# -------------------------------------------------------------------------------------------------------------- plan

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tokens in one axis": ({"shape": (1, 16, 8)}, r"x has shape \[1, 16, 8\], and \[B, H, W, C\]"),
    "tokens in one axis behind": (
        {"other": {"output": Tensor((2, 784, 384), "float16")}},
        r"output has shape \[2, 784, 384\]",
    ),
    "the gamma of one pixel": ({"other": {"gamma": Tensor((96,), "float16")}}, r"gamma has shape \[96\], and \[384\]"),
    "an odd map cut off": (
        {"shape": (1, 5, 5, 8), "other": {"output": Tensor((1, 2, 2, 32), "float16")}},
        r"\[1, 3, 3, 32\] is needed",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_to_plan(name: str) -> None:
    asked, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=reason):
        PATCH_MERGING.plan(**asked)


def test_cpp_refuses_more_tokens_than_ints_can_count(tmp_path: Path) -> None:
    twin = host_compiler.load_layer_norm("patch_merging", PATCH_MERGING.params, tmp_path)
    p: Any = PATCH_MERGING.plan().parameters
    p.batch, p.height, p.width = 1, 2**17, 2**16
    assert b"2^31 - 1 merged tokens" in twin.unsupported(p, 1, 90)
