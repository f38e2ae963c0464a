"""swinopt makes Swin Transformers fast and correct on TensorRT.

import swinopt

result = swinopt.optimize("swin.onnx")
print(result)
result.save("swin.optimized.onnx")
"""

from swinopt.api import Optimized, optimize, pipeline
from swinopt.errors import (
    MissingDependencyError,
    ModelError,
    OptionError,
    PassError,
    SwinoptError,
    VerificationError,
)
from swinopt.export import export
from swinopt.pipeline import Pass, Pipeline
from swinopt.report import Report
from swinopt.rewrite import Rewriter, Rule
from swinopt.verify import Comparison, compare

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "MissingDependencyError",
    "ModelError",
    "Optimized",
    "OptionError",
    "Pass",
    "PassError",
    "Pipeline",
    "Report",
    "Rewriter",
    "Rule",
    "SwinoptError",
    "VerificationError",
    "__version__",
    "compare",
    "export",
    "optimize",
    "pipeline",
]
