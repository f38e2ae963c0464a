"""The ONNX Runtime that runs definitions of ops: without one, what imports this is skipped."""

from __future__ import annotations

import pytest

_ort = pytest.importorskip("onnxruntime", reason="definitions of ops are run by ONNX Runtime")

_VERSION = tuple(int(part) for part in _ort.__version__.split(".")[:2])
needs_overloads = pytest.mark.skipif(_VERSION < (1, 27), reason="ONNX Runtime < 1.27 ignores function overloads")


def require_opset(opset: int) -> None:
    """Skips the test where this ONNX Runtime may be too old for an opset."""
    if opset > 20 and _VERSION < (1, 23):
        pytest.skip(f"ONNX Runtime {_ort.__version__} may not know opset {opset}")
