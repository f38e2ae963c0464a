"""AddLayerNorm's reference against torch; test_norm_plans.py has its plan."""

from __future__ import annotations

import numpy as np
import pytest

from swinopt.cuda_plugins.add_layer_norm.reference import add_layer_norm


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 8), (4, 1)], ids=str)
def test_the_reference_is_what_torch_computes(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    a, b, gamma, beta = (random.normal(3, 1, size) for size in (shape, shape, shape[-1:], shape[-1:]))
    total, normalized = add_layer_norm(a, b, gamma, beta, epsilon=1e-3)
    x, weight, bias = (torch.from_numpy(array) for array in (a + b, gamma, beta))
    wanted = torch.nn.functional.layer_norm(x, shape[-1:], weight, bias, 1e-3).numpy()
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_allclose(normalized, wanted, rtol=1e-12, atol=1e-12)


def test_the_norm_is_that_of_the_sum_before_it_is_rounded() -> None:
    a, b = np.float16([[2048, 2048]]), np.float16([[0.25, 0.75]])  # both sums are 2048 in float16
    ones, zeros = np.ones(2, np.float16), np.zeros(2, np.float16)
    total, normalized = add_layer_norm(a, b, ones, zeros, epsilon=0.0)
    assert total.dtype == normalized.dtype == np.float16
    assert total.tolist() == [[2048, 2048]] and normalized.tolist() == [[-1, 1]]


@pytest.mark.parametrize("wrong", [{"b": (3, 4)}, {"gamma": (3,)}, {"beta": (1,)}], ids=str)
def test_the_reference_refuses_shapes_that_do_not_fit(wrong: dict[str, tuple[int, ...]]) -> None:
    shapes = {"a": (2, 4), "b": (2, 4), "gamma": (4,), "beta": (4,), **wrong}
    with pytest.raises(ValueError, match="shapes do not fit"):
        add_layer_norm(*(np.zeros(shape) for shape in shapes.values()))
