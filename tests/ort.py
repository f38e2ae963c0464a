"""The ONNX Runtime that models are run in: without one, what imports this is skipped."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from swinopt.session import Session

_ort = pytest.importorskip("onnxruntime", reason="models are run by ONNX Runtime")

_VERSION = tuple(int(part) for part in _ort.__version__.split(".")[:2])
needs_overloads = pytest.mark.skipif(_VERSION < (1, 27), reason="ONNX Runtime < 1.27 ignores function overloads")


def require_opset(opset: int) -> None:
    """Skips the test where this ONNX Runtime may be too old for an opset."""
    if opset > 20 and _VERSION < (1, 23):
        pytest.skip(f"ONNX Runtime {_ort.__version__} may not know opset {opset}")


def begun_sessions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the sessions are of that are begun from now on."""
    begun: list[str] = []
    create = Session.__init__

    def counted(self: Session, proto: onnx.ModelProto, what: str, **options: Any) -> None:
        begun.append(what)
        create(self, proto, what, **options)

    monkeypatch.setattr(Session, "__init__", counted)
    return begun
