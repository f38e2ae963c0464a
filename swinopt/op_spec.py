"""What the library knows of an op of the swinopt domain: the form of a specification, and what writing one takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper, parser

from swinopt.errors import ModelError

DOMAIN = "swinopt"
#: What the bodies are written in. The operators they use mean the same in every later opset.
MIN_OPSET = 17
#: The dtypes that the ops have.
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)

#: A dimension is a number, a name, or unknown.
Dim: TypeAlias = int | str | None
Shape: TypeAlias = tuple[Dim, ...]


@dataclass(frozen=True)
class Input:
    """One input of an op.

    ``uniform`` marks an optional input that changes the body but not the meaning of nodes without it: where some nodes
    of a model have it and others do not, all of them get the body that takes it.

    ``constant`` marks an input that kernels may read while those in front of them still run, so that only initializers
    are given to them.
    """

    name: str
    shape: str
    doc: str
    optional: bool = False
    uniform: bool = False
    constant: bool = False


@dataclass(frozen=True)
class Output:
    """One output of an op."""

    name: str
    shape: str
    doc: str


@dataclass(frozen=True)
class Attribute:
    """One attribute of an op; required where ``default`` is None."""

    name: str
    type: AttributeProto.AttributeType
    doc: str
    default: int | float | None = None


@dataclass(frozen=True)
class OpSpec:
    """All there is to know about an op.

    Attributes:
        name: the ``op_type``.
        doc: the definition, in words and formulas.
        inputs: in order; the optional ones last.
        attributes: by name.
        outputs: in order; every node has all of them.
        infer: from the input shapes (None where absent) and the attributes (defaults filled in) to the output shapes.
        body: from a node and an opset to the node's definition; ``overload`` of it names the variant.
    """

    name: str
    doc: str
    inputs: tuple[Input, ...]
    attributes: tuple[Attribute, ...]
    outputs: tuple[Output, ...]
    infer: Callable[[Sequence[Shape | None], Mapping[str, Any]], list[Shape]]
    body: Callable[[NodeProto, int], FunctionProto]

    @property
    def required_inputs(self) -> int:
        """How many of the inputs every node has."""
        return sum(not i.optional for i in self.inputs)

    @property
    def required_attributes(self) -> tuple[str, ...]:
        """The attributes that every node has."""
        return tuple(a.name for a in self.attributes if a.default is None)

    @property
    def defaults(self) -> dict[str, int | float]:
        """The attributes that a node may leave out, and what they are then."""
        return {a.name: a.default for a in self.attributes if a.default is not None}


def parse_body(spec: OpSpec, text: str, opset: int, inputs: int | None = None) -> FunctionProto:
    """The definition of an op from its steps in ONNX's textual syntax.

    Args:
        spec: the op; the steps define all of its outputs by their names.
        text: the steps. ``@name`` is an attribute of the node.
        opset: the version of the standard operators. A model's checker wants the model's own.
        inputs: how many inputs the body takes; all by default.

    Returns:
        A function of the swinopt domain, without ``overload``.

    Raises:
        ModelError: ``opset`` is older than the operators that bodies are written in.
    """
    if opset < MIN_OPSET:
        raise ModelError(f"the swinopt ops need opset {MIN_OPSET} or later, this is {opset}: convert the model first")
    defaults = [helper.make_attribute(name, value) for name, value in spec.defaults.items()]
    # The parser takes no empty list of attributes.
    asked = f"<{', '.join(spec.required_attributes)}>" if spec.required_attributes else ""
    taken = ", ".join(i.name for i in spec.inputs[:inputs])
    made = ", ".join(o.name for o in spec.outputs)
    body = parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n{spec.name} {asked} ({taken}) => ({made})\n{{ {text} }}'
    )
    body.attribute_proto.extend(defaults)
    body.doc_string = spec.doc
    return body


def has_input(node: NodeProto, index: int) -> bool:
    """Whether the node has the input at ``index``; optional ones may be left out or be empty."""
    return len(node.input) > index and bool(node.input[index])


def require_shape(what: str, shape: Shape | None, expected: Shape) -> None:
    """Asks for a shape, as far as both are known; an absent input fits.

    Raises:
        ModelError: they contradict each other.
    """
    if shape is None:
        return
    pairs = zip(shape, expected, strict=False)
    contradicted = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
    if len(shape) != len(expected) or contradicted:
        raise ModelError(f"{what} has shape {shape}, but {expected} is needed")
