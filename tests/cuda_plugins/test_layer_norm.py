"""LayerNorm: the reference against torch, and what its residual alone does to the plan (see test_norm_plans.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from swinopt import cuda_plugins
from swinopt.cuda_plugins.launch import Tensor, Unsupported
from swinopt.cuda_plugins.layer_norm.reference import layer_norm
from tests.cuda_plugins.norms import H200

# --------------------------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 8), (4, 1)], ids=str)
def test_the_reference_is_what_torch_computes(shape: tuple[int, ...], residual: bool) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    x, gamma, beta, added = (random.normal(3, 1, size) for size in (shape, shape[-1:], shape[-1:], shape))
    given = [torch.from_numpy(array) for array in (x, gamma, beta)]
    wanted = torch.nn.functional.layer_norm(given[0], shape[-1:], *given[1:], 1e-3).numpy()
    found = layer_norm(x, gamma, beta, added if residual else None, epsilon=1e-3)
    np.testing.assert_allclose(found, wanted + added if residual else wanted, rtol=1e-12, atol=1e-12)


def test_the_sum_of_norm_and_residual_is_rounded_once() -> None:
    x, gamma = np.float16([[-1, 1]]), np.float16([2**-11, 2**-11])
    beta, residual = np.ones(2, np.float16), np.full((1, 2), -1, np.float16)
    output = layer_norm(x, gamma, beta, residual, epsilon=0.0)
    assert output.dtype == np.float16 and output.tolist() == [[-(2**-11), 2**-11]]


@pytest.mark.parametrize("wrong", [{"residual": (3, 4)}, {"residual": (4,)}, {"gamma": (3,)}, {"beta": (1,)}], ids=str)
def test_the_reference_refuses_shapes_that_do_not_fit(wrong: dict[str, tuple[int, ...]]) -> None:
    shapes = {"x": (2, 4), "gamma": (4,), "beta": (4,), **wrong}
    with pytest.raises(ValueError, match="shapes do not fit"):
        layer_norm(*(np.zeros(shape) for shape in shapes.values()))


# -------------------------------------------------------------------------------------------------------------- plan


def test_a_residual_may_be_absent() -> None:
    tensors = [Tensor(shape, "float16", 4096) for shape in ((6, 8), (8,), (8,), (6, 8))]
    for inputs in (tensors[:3], [*tensors[:3], None]):
        launch = cuda_plugins.plan("LayerNorm", inputs, tensors[3:], {"epsilon": 0.25}, H200)
        p: Any = launch.parameters
        assert (p.x, p.gamma, p.beta, p.residual, p.output) == (4096, 4096, 4096, None, 4096)
        assert launch.kernel == "swinopt::layer_norm<__half, 4, 1, false>"


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (5, 1), (3, 0), (3, 2)])
def test_another_number_of_tensors_is_refused(inputs: int, outputs: int) -> None:
    tensor = Tensor((8,), "float16")
    with pytest.raises(Unsupported, match="needs x, gamma and beta, takes a residual, and makes one output"):
        cuda_plugins.plan("LayerNorm", [tensor] * inputs, [tensor] * outputs, {"epsilon": 1e-5}, H200)
