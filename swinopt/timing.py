"""What measurements of an engine look like: how long it takes, and where the time goes."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from swinopt import ops

#: How TensorRT names the layers that it puts between two others.
_REFORMATTING = "Reformatting CopyNode"


@dataclass(frozen=True)
class Timing:
    """How long one inference takes on the GPU, copies to and from the host not counted.

    Attributes:
        samples: milliseconds of each run, in order.
        shapes: of the inputs.
        graph: whether a CUDA graph was launched, rather than one kernel after the other by the host.
        inputs: how many different inputs took turns.
        gpu: its name.
        engine: what ran, in words.
    """

    samples: tuple[float, ...]
    shapes: Mapping[str, tuple[int, ...]]
    graph: bool
    inputs: int
    gpu: str
    engine: str

    @property
    def median(self) -> float:
        """Milliseconds of the run in the middle."""
        return self.percentile(50)

    @property
    def spread(self) -> float:
        """From the 10th to the 90th percentile, as a fraction of the median."""
        return (self.percentile(90) - self.percentile(10)) / self.median

    @property
    def items_per_second(self) -> float:
        """Inferences a second times the batch, which is the first size of the first input."""
        first: tuple[int, ...] = next(iter(self.shapes.values()), ())
        return 1000 / self.median * (first[0] if first else 1)

    def percentile(self, percent: float) -> float:
        """Milliseconds that this percentage of the runs did not exceed."""
        return float(np.percentile(self.samples, percent))

    def to_dict(self) -> dict[str, Any]:
        """All figures but the single samples, in types that JSON knows."""
        return {
            "median_ms": self.median,
            "p10_ms": self.percentile(10),
            "p90_ms": self.percentile(90),
            "p99_ms": self.percentile(99),
            "min_ms": min(self.samples),
            "max_ms": max(self.samples),
            "spread": self.spread,
            "items_per_second": self.items_per_second,
            "runs": len(self.samples),
            "inputs": self.inputs,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "cuda_graph": self.graph,
            "gpu": self.gpu,
            "engine": self.engine,
        }

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in self.shapes.items())
        return (
            f"median {self.median:.3f} ms, p10 {self.percentile(10):.3f}, p90 {self.percentile(90):.3f}, "
            f"p99 {self.percentile(99):.3f}, spread {self.spread:.1%}, {self.items_per_second:.0f} items/s\n"
            f"{shapes}; {len(self.samples)} runs on {self.inputs} inputs in turn, "
            f"{'as a CUDA graph' if self.graph else 'without a CUDA graph'}; {self.engine} on {self.gpu}"
        )


@dataclass(frozen=True)
class LayerTimes:
    """Where the time of an inference goes.

    TensorRT measures layer by layer, which takes longer than all of them together: shares mean more than sums.

    Attributes:
        layers: mean milliseconds by layer, the longest first.
        runs: how many runs the means are of.
    """

    layers: Mapping[str, float]
    runs: int

    @property
    def total(self) -> float:
        """Milliseconds of all layers."""
        return sum(self.layers.values())

    @property
    def kinds(self) -> Mapping[str, Mapping[str, float]]:
        """The layers by kind, the kind that takes longest first: swinopt's plugins by op, reformatting, and the rest.

        Plugins are told by the names that swinopt gives their nodes.
        """
        kinds: dict[str, dict[str, float]] = {}
        for name, ms in self.layers.items():
            op = name.split("_")[0]
            kind = op if op in ops.SPECS else "reformatting" if name.startswith(_REFORMATTING) else "other"
            kinds.setdefault(kind, {})[name] = ms
        return dict(sorted(kinds.items(), key=lambda item: -sum(item[1].values())))

    def to_dict(self) -> dict[str, Any]:
        """Milliseconds by kind and by layer, in types that JSON knows."""
        kinds = {kind: sum(layers.values()) for kind, layers in self.kinds.items()}
        return {"kinds": kinds, "layers": dict(self.layers)}

    def __str__(self) -> str:
        kinds = {f"{kind} ({len(layers)})": sum(layers.values()) for kind, layers in self.kinds.items()}
        by_kind, by_layer = (
            [f"{ms:9.4f} ms {ms / self.total:7.1%}  {name}" for name, ms in times.items()]
            for times in (kinds, self.layers)
        )
        head = f"{self.total:9.4f} ms {len(self.layers)} layers, mean of {self.runs} runs"
        return "\n".join([head, "by kind:", *by_kind, "by layer:", *by_layer])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{ms:.4f}</td><td>{ms / self.total:.1%}</td><td>{html.escape(name)}</td></tr>"
            for name, ms in self.layers.items()
        )
        return f"<table><tr><th>ms</th><th>share</th><th>layer</th></tr>{rows}</table>"
