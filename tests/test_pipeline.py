from __future__ import annotations

import dataclasses
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import swinopt
from swinopt import registry
from swinopt.errors import OptionError, PassError
from swinopt.passes import EliminateNoops, FoldConstants, FuseGelu, FuseLayerNorm
from swinopt.pipeline import Pass, Pipeline
from swinopt.report import PassReport
from swinopt.rewrite import Rewriter
from swinopt.testing import assert_equivalent, parse

W = np.array([1, 2, 3], np.float32)


def model() -> onnx.ModelProto:
    """Foldable weights, a no-op, and something that computes in between."""
    return parse(
        """g (float[N, 3] x) => (float[N, 3] y) {
            n = Neg(w)  m = Mul(x, n)  i = Identity(m)  t = Tanh(i)  s = Add(t, n)  y = Abs(s)
        }""",
        w=W,
    )


@dataclass(frozen=True)
class Noted(Pass):
    """Does nothing, with options of every kind."""

    name: ClassVar[str] = "noted"
    number: int = 1
    share: float = 0.5
    text: str = "a, b(c)"
    sizes: tuple[int, ...] = (1, 2)
    loud: bool = False

    def run(self, rewriter: Rewriter) -> None:
        rewriter.refuse(rewriter.graph.nodes[0], "only looking")


# -------------------------------------------------------------------------------------------------- pipelines as values


def test_a_pass_is_a_frozen_value() -> None:
    assert FoldConstants(budget=3) == FoldConstants(budget=3) != FoldConstants(budget=4)
    assert len({FuseGelu(), FuseGelu(), FuseLayerNorm()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        FoldConstants().budget = 3  # type: ignore[misc]


def test_a_pipeline_is_a_frozen_value() -> None:
    one = Pipeline(FoldConstants(), FuseGelu())
    assert one == Pipeline(FoldConstants(), FuseGelu()) and hash(one) == hash(Pipeline(FoldConstants(), FuseGelu()))
    assert one != Pipeline(FuseGelu(), FoldConstants())
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.passes = ()  # type: ignore[misc]


def test_a_pipeline_of_pipelines_is_flat() -> None:
    inner = Pipeline(FoldConstants(), FuseGelu())
    outer = Pipeline(inner, EliminateNoops(), Pipeline(), inner)
    assert [p.name for p in outer] == [
        "fold-constants",
        "fuse-gelu",
        "eliminate-noops",
        "fold-constants",
        "fuse-gelu",
    ]
    assert len(outer) == 5


@pytest.mark.parametrize("wrong", [FuseGelu, "fuse-gelu", None, [FuseGelu()]])
def test_only_passes_go_into_a_pipeline(wrong: object) -> None:
    with pytest.raises(OptionError, match="a pipeline consists of passes"):
        Pipeline(FoldConstants(), wrong)  # type: ignore[arg-type]


def names(pipeline: Pipeline) -> str:
    return " ".join(p.name for p in pipeline)


def test_cutting_and_extending_makes_new_pipelines() -> None:
    start = Pipeline(FoldConstants(), EliminateNoops(), FuseGelu(), EliminateNoops())
    assert names(start.without("eliminate-noops")) == "fold-constants fuse-gelu"
    assert names(start.without("fuse-gelu", "fold-constants")) == "eliminate-noops eliminate-noops"
    assert names(start.before("eliminate-noops", Noted(), FuseLayerNorm())) == (
        "fold-constants noted fuse-layer-norm eliminate-noops fuse-gelu eliminate-noops"
    )
    assert names(start.after("eliminate-noops", Noted())) == (
        "fold-constants eliminate-noops noted fuse-gelu eliminate-noops"
    )
    assert names(start.then(Noted(), Pipeline(FuseLayerNorm()))).endswith("eliminate-noops noted fuse-layer-norm")
    replaced = start.replace("fold-constants", FoldConstants(budget=0))
    assert replaced["fold-constants"] == FoldConstants(budget=0) and len(replaced) == 4
    assert names(start.replace("fuse-gelu")) == "fold-constants eliminate-noops eliminate-noops"
    assert names(start) == "fold-constants eliminate-noops fuse-gelu eliminate-noops"


@pytest.mark.parametrize("method", ["without", "before", "after", "replace", "__getitem__"])
def test_a_pass_that_the_pipeline_does_not_have(method: str) -> None:
    pipeline = Pipeline(FoldConstants(), FuseGelu())
    with pytest.raises(OptionError, match="has no pass 'fuse-gelo'; it has: fold-constants, fuse-gelu"):
        getattr(pipeline, method)("fuse-gelo")


def test_a_pipeline_is_a_sequence() -> None:
    pipeline = Pipeline(FoldConstants(), FuseGelu(), Noted())
    assert pipeline[0] == FoldConstants() and pipeline[-1] == Noted()
    assert isinstance(pipeline[1:], Pipeline) and names(pipeline[1:]) == "fuse-gelu noted"
    assert pipeline["fuse-gelu"] == FuseGelu()
    assert "fuse-gelu" in pipeline and pipeline[1] in pipeline and "nothing" not in pipeline
    assert list(pipeline) == [FoldConstants(), FuseGelu(), Noted()]
    with pytest.raises(IndexError):
        pipeline[3]


def test_an_empty_pipeline_changes_nothing() -> None:
    assert len(Pipeline()) == 0 and str(Pipeline()) == ""
    assert_equivalent(model(), Pipeline()(model()), tolerance=0)


# ------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("text", "pipeline"),
    [
        ("fuse-gelu", Pipeline(FuseGelu())),
        (" fuse-gelu ,fold-constants,, ", Pipeline(FuseGelu(), FoldConstants())),
        ("fold-constants()", Pipeline(FoldConstants())),
        ("fold-constants(budget=0), fuse-gelu", Pipeline(FoldConstants(budget=0), FuseGelu())),
        ("fold-constants( budget = 1_000 )", Pipeline(FoldConstants(budget=1000))),
        ("\nfold-constants(\n  budget=7,\n)\n", Pipeline(FoldConstants(budget=7))),
        ("", Pipeline()),
    ],
)
def test_pipelines_from_text(text: str, pipeline: Pipeline) -> None:
    assert Pipeline.parse(text) == pipeline


@pytest.mark.parametrize(
    "pipeline",
    [
        Pipeline(),
        Pipeline(FoldConstants(), FuseGelu()),
        Pipeline(FoldConstants(budget=3), FuseGelu(), FoldConstants()),
        Pipeline(Noted(number=2), Noted(share=0.25, loud=True)),
        Pipeline(Noted(text="x, y), (z", sizes=(3,)), FuseGelu()),
        Pipeline(Noted(text='it\'s "so" [\n]')),
    ],
)
def test_text_there_and_back(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry.available()
    monkeypatch.setattr(registry, "available", lambda: {**known, "noted": Noted})
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert eval(repr(pipeline), {"Pipeline": Pipeline}) == pipeline


def test_a_pass_prints_the_options_that_were_changed() -> None:
    assert str(FoldConstants()) == "fold-constants"
    assert str(FoldConstants(budget=0)) == "fold-constants(budget=0)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fuse-glu", "there is no pass 'fuse-glu'; did you mean fuse-gelu"),
        ("xyz", "there is no pass 'xyz'; there are: .*fold-constants, .*fuse-gelu"),
        ("FuseGelu", "there is no pass 'FuseGelu'"),
        ("fuse gelu", "'fuse gelu' is no pass: write name"),
        ("fold-constants(budget=0", "is no pass: write name or name"),
        ("fold-constants)(", "is no pass"),
        ("fold-constants(budgt=0)", "budgt.*options of fold-constants: budget"),
        ("fold-constants(0)", "options are written as name=value; options of fold-constants: budget"),
        ("fold-constants(budget=print(1))", "options of fold-constants: budget"),
        ("fold-constants(budget=)", "options of fold-constants: budget"),
        ("fold-constants(**{'budget': 1})", "options of fold-constants: budget"),
        ("fold-constants(budget=1) or x(y=1)", "options of fold-constants|is no pass"),
        ("fuse-gelu(x=1)", "options of fuse-gelu: none"),
    ],
)
def test_text_that_is_no_pipeline_is_refused_with_a_hint(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Pipeline.parse(text)


# ------------------------------------------------------------------------------------------------- third-party passes

PACKAGE = """
from dataclasses import dataclass
from typing import ClassVar
from swinopt import Pass

@dataclass(frozen=True)
class DropTanh(Pass):
    name: ClassVar[str] = "drop-tanh"
    keep: int = 0

    def run(self, rewriter):
        for node in rewriter.nodes("Tanh")[self.keep:]:
            rewriter.replace(node.outputs[0], rewriter.op("Relu", node.inputs[0]))
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with a pass in it, as pip would install it."""
    (tmp_path / "somebodys_passes.py").write_text(PACKAGE)
    info = tmp_path / "somebodys_passes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-passes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[swinopt.passes]\ndrop-tanh = somebodys_passes:DropTanh\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("somebodys_passes", None)


def test_a_pass_of_another_package_is_known_by_name(installed: None) -> None:
    pipeline = Pipeline.parse("fold-constants, drop-tanh(keep=0)")
    assert str(pipeline) == "fold-constants, drop-tanh"
    assert "drop-tanh" in registry.available()
    assert "Relu" in [node.op_type for node in pipeline(model()).graph.node]


def test_a_pass_of_another_package_is_verified_like_any_other(installed: None) -> None:
    result = swinopt.optimize(model(), passes="fold-constants, drop-tanh, eliminate-noops")
    assert [p.status for p in result.report.passes] == ["applied", "rolled back", "applied"]


def points(monkeypatch: pytest.MonkeyPatch, **found: object) -> None:
    def load(thing: object) -> object:
        if isinstance(thing, Exception):
            raise thing
        return thing

    made = [SimpleNamespace(name=n, value=f"pkg:{n}", load=lambda t=t: load(t)) for n, t in found.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: made if group == "swinopt.passes" else [])


def test_a_pass_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, broken=ImportError("no module named torch"))
    with pytest.raises(OptionError, match="the pass broken of pkg:broken cannot be loaded: no module named torch"):
        registry.available()


def test_a_built_in_pass_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = type("Fake", (Noted,), {"name": "fuse-gelu"})
    points(monkeypatch, fake=fake)
    assert registry.find("fuse-gelu") is FuseGelu


@pytest.mark.parametrize("thing", [7, SimpleNamespace(), len, dict])
def test_what_is_registered_and_is_no_pass_is_refused(thing: object, monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, thing=thing)
    with pytest.raises(OptionError, match="thing"):
        registry.available()


def test_the_names_are_verb_phrases_in_kebab_case() -> None:
    for name, kind in registry.available().items():
        assert name == kind.name == name.lower() and "_" not in name and kind.__doc__


# ------------------------------------------------------------------------------------------ running and rolling back


def first(rewriter: Rewriter, op: str) -> gs.Node:
    return rewriter.nodes(op)[0]


class Wrong(Pass):
    """Base of the passes that do harm."""

    name: ClassVar[str] = "do-harm"


@dataclass(frozen=True)
class ChangeNumbers(Wrong):
    by: float = 1.0

    def run(self, rewriter: Rewriter) -> None:
        old = first(rewriter, "Tanh").outputs[0]
        node = first(rewriter, "Tanh")
        new = rewriter.op("Tanh", rewriter.op("Add", node.inputs[0], rewriter.constant(self.by, np.float32)))
        rewriter.replace(old, new)


@dataclass(frozen=True)
class MakeNan(Wrong):
    def run(self, rewriter: Rewriter) -> None:
        node = first(rewriter, "Tanh")
        rewriter.replace(node.outputs[0], rewriter.op("Log", rewriter.op("Sub", node.inputs[0], node.inputs[0])))


@dataclass(frozen=True)
class Raise(Wrong):
    def run(self, rewriter: Rewriter) -> None:
        node = first(rewriter, "Tanh")
        rewriter.replace(node.outputs[0], rewriter.op("Relu", node.inputs[0]))
        raise ZeroDivisionError("on the way")


@dataclass(frozen=True)
class UnknownOp(Wrong):
    def run(self, rewriter: Rewriter) -> None:
        node = first(rewriter, "Tanh")
        rewriter.replace(node.outputs[0], rewriter.op("Tangens", node.inputs[0]))


@dataclass(frozen=True)
class CutEdge(Wrong):
    def run(self, rewriter: Rewriter) -> None:
        first(rewriter, "Tanh").inputs[0] = gs.Variable("nowhere", np.float32)
        rewriter.applied += 1


@dataclass(frozen=True)
class RenameOutput(Wrong):
    def run(self, rewriter: Rewriter) -> None:
        rewriter.graph.outputs[0].name = "z"
        rewriter.applied += 1


@dataclass(frozen=True)
class DropInput(Wrong):
    def run(self, rewriter: Rewriter) -> None:
        rewriter.graph.inputs.clear()
        rewriter.applied += 1


@dataclass(frozen=True)
class ChangeAttribute(Wrong):
    def run(self, rewriter: Rewriter) -> None:
        first(rewriter, "Tanh").op = "Sigmoid"
        rewriter.applied += 1


@dataclass(frozen=True)
class WriteIntoWeight(Wrong):
    def run(self, rewriter: Rewriter) -> None:
        first(rewriter, "Add").inputs[1].values[...] = 0
        rewriter.applied += 1


@dataclass(frozen=True)
class ReplaceWeight(Wrong):
    def run(self, rewriter: Rewriter) -> None:
        first(rewriter, "Add").inputs[1].values = np.zeros(3, np.float32)
        rewriter.applied += 1


@dataclass(frozen=True)
class FoldWrongly(Wrong):
    def run(self, rewriter: Rewriter) -> None:
        rewriter.fold(first(rewriter, "Tanh").outputs[0], np.ones(3, np.float32))


@dataclass(frozen=True)
class ChangeShape(Wrong):
    def run(self, rewriter: Rewriter) -> None:
        node = first(rewriter, "Tanh")
        rewriter.replace(node.outputs[0], rewriter.op("Transpose", rewriter.op("Tanh", node.inputs[0]), perm=[1, 0]))


NUMBERS = [ChangeNumbers(), MakeNan(), ChangeAttribute(), ReplaceWeight(), WriteIntoWeight(), FoldWrongly()]
STRUCTURE = [Raise(), UnknownOp(), CutEdge(), RenameOutput(), DropInput()]


def run(wrong: Pass, *, verify: bool = True) -> tuple[onnx.ModelProto, PassReport]:
    """Folding before and the elimination of no-ops after a wrong pass; asserts that their work survives."""
    before = model()
    steps = Pipeline(FoldConstants(), wrong, EliminateNoops())
    result = swinopt.optimize(before, passes=steps, target="portable", verify=verify)
    folded, report, eliminated = result.report.passes
    assert (folded.status, eliminated.status) == ("applied", "applied")
    assert (folded.applied, eliminated.applied) == (1, 1)
    return result.model, report


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("wrong", [*NUMBERS, *STRUCTURE, ChangeShape()], ids=lambda w: type(w).__name__)
def test_a_pass_that_does_harm_is_undone_and_the_work_of_the_others_survives(wrong: Pass) -> None:
    after, report = run(wrong)
    assert report.status == "rolled back" and report.note and report.applied == 0
    assert report.nodes_before == report.nodes_after
    assert ops(after) == ["Mul", "Tanh", "Add", "Abs"]
    assert_equivalent(model(), after, tolerance=0)
    assert [(i.name, o.name) for i, o in zip(after.graph.input, after.graph.output, strict=True)] == [("x", "y")]


@pytest.mark.parametrize("wrong", STRUCTURE, ids=lambda w: type(w).__name__)
def test_without_numbers_the_structure_is_checked_all_the_same(wrong: Pass) -> None:
    after, report = run(wrong, verify=False)
    assert report.status == "rolled back" and report.note and report.max_abs_diff is None
    assert ops(after) == ["Mul", "Tanh", "Add", "Abs"]
    assert_equivalent(model(), after, tolerance=0)


def test_without_numbers_wrong_numbers_go_through() -> None:
    after, report = run(ChangeNumbers(), verify=False)
    assert report.status == "applied"
    assert ops(after).count("Add") == 2


def test_what_is_wrong_is_said_with_the_first_tensor_that_diverges() -> None:
    _, report = run(ChangeNumbers())
    assert report.first_divergence == "t"
    assert report.note and report.note.startswith("output 'y' differs by")
    assert report.max_abs_diff is not None and report.max_abs_diff > 1e-3


def test_nan_is_named() -> None:
    _, report = run(MakeNan())
    assert report.note and "became NaN or Inf" in report.note and report.first_divergence == "t"


def test_an_exception_is_named() -> None:
    _, report = run(Raise())
    assert report.note == "ZeroDivisionError: on the way"


def test_a_cut_edge_is_named() -> None:
    _, report = run(CutEdge())
    assert report.note and "reads 'nowhere', which nothing before it makes" in report.note


def test_how_much_a_pass_may_change_is_its_own_affair() -> None:
    @dataclass(frozen=True)
    class Generous(ChangeNumbers):
        tolerance: ClassVar[float] = 0.1

    assert run(ChangeNumbers(by=1e-3))[1].status == "rolled back"
    assert run(Generous(by=1e-3))[1].status == "applied"
    assert run(ChangeNumbers(by=1e-7))[1].status == "applied"


@dataclass(frozen=True)
class TimesBefore(Wrong):
    """Sin(factor * (x @ w)) as Sin(factor * by * x @ w): the same for by = 1, but for rounding."""

    name: ClassVar[str] = "times-before"
    by: float = 1.0

    def run(self, rewriter: Rewriter) -> None:
        mul, product = first(rewriter, "Mul"), first(rewriter, "MatMul")
        factor = rewriter.constant(np.array(mul.inputs[1].values * self.by, np.float32), hint="factor")
        scaled = rewriter.op("Mul", product.inputs[0], factor)
        rewriter.replace(mul.outputs[0], rewriter.op("MatMul", scaled, product.inputs[1]))


def test_a_pass_is_allowed_what_rounding_does_to_the_model_and_no_mistake() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)

    def report(by: float, factor: float) -> PassReport:
        text = "g (float[N, 8] x) => (float[N, 8] y) { p = MatMul(x, w)  m = Mul(p, c)  y = Sin(m) }"
        before = parse(text, w=weight, c=np.array(factor, np.float32))
        (done,) = swinopt.optimize(before, passes=TimesBefore(by=by), target="portable").report.passes
        return done

    magnified = report(by=1.0, factor=100 / 3)
    assert magnified.status == "applied" and magnified.max_abs_diff is not None and magnified.max_abs_diff > 1e-5
    assert magnified.remark is not None and "one rounding of the inputs moves it by" in magnified.remark
    assert report(by=1.0, factor=1 / 3).remark is None
    for factor in (100 / 3, 1 / 3):
        wrong = report(by=1 + 1e-4, factor=factor)
        assert wrong.status == "rolled back" and wrong.remark is None and wrong.first_divergence


@dataclass(frozen=True)
class MeanOfSixteen(Wrong):
    """The mean as the sum divided by 16."""

    def run(self, rewriter: Rewriter) -> None:
        mean = first(rewriter, "ReduceMean")
        total = rewriter.op("ReduceSum", *mean.inputs, keepdims=0)
        rewriter.replace(mean.outputs[0], rewriter.op("Div", total, rewriter.constant(16.0, np.float32)))


@pytest.mark.parametrize(
    ("shape", "axis"), [("N, T, 3", 1), ("N, 3, T", 2), ("N, 3, T, 8, 8", 2), ("N, T, 8, 8, 3", 1)]
)
def test_a_pass_that_is_right_for_one_number_of_tokens_or_frames_is_undone(shape: str, axis: int) -> None:
    text = f"g (float[{shape}] x) => (float y) {{ m = ReduceMean <keepdims = 0> (x, axis)  y = Tanh(m) }}"
    before = parse(text, axis=np.array([axis]))
    (report,) = swinopt.optimize(before, passes=MeanOfSixteen(), target="portable").report.passes
    assert report.status == "rolled back" and report.note and "output 'y' differs by" in report.note


def test_a_pass_that_does_harm_after_having_refused_keeps_its_refusals() -> None:
    @dataclass(frozen=True)
    class RefuseThenRaise(Wrong):
        def run(self, rewriter: Rewriter) -> None:
            rewriter.refuse(rewriter.graph.nodes[0], "not here")
            raise ValueError("gone")

    assert [r.reason for r in run(RefuseThenRaise())[1].refusals] == ["not here"]


def test_what_an_undone_pass_learned_of_its_tensors_is_forgotten() -> None:
    shapes = []

    @dataclass(frozen=True)
    class Make(Wrong):
        op: str

        def run(self, rewriter: Rewriter) -> None:
            x = rewriter.graph.inputs[0]
            made = rewriter.op(self.op, x, hint="made")
            shapes.append((made.name, rewriter.facts.dims(made)))
            if self.op == "Transpose":
                raise ValueError("undo me")

    swinopt.optimize(model(), passes=Pipeline(Make("Transpose"), Make("Exp")), verify=False)
    assert shapes == [("made", (3, None)), ("made", (None, 3))]


def test_a_harmful_pass_that_comes_again_is_undone_again() -> None:
    steps = Pipeline(ChangeNumbers(), FoldConstants(), ChangeNumbers(), EliminateNoops(), Raise())
    result = swinopt.optimize(model(), passes=steps, target="portable")
    assert [p.status for p in result.report.passes] == [
        "rolled back",
        "applied",
        "rolled back",
        "applied",
        "rolled back",
    ]
    assert ops(result.model) == ["Mul", "Tanh", "Add", "Abs"]
    assert not result.report.ok


def test_what_a_pass_did_is_reported() -> None:
    result = swinopt.optimize(model(), passes=Pipeline(FoldConstants(), Noted(), EliminateNoops()), target="portable")
    folded, noted, eliminated = result.report.passes
    assert (folded.name, folded.applied, folded.nodes_before, folded.nodes_after) == ("fold-constants", 1, 6, 5)
    assert (noted.status, noted.applied, [r.reason for r in noted.refusals]) == ("unchanged", 0, ["only looking"])
    assert (eliminated.nodes_before, eliminated.nodes_after) == (5, 4)
    assert folded.max_abs_diff == eliminated.max_abs_diff == 0 and noted.max_abs_diff is None
    assert dict(eliminated.ops_after) == {"Mul": 1, "Tanh": 1, "Add": 1, "Abs": 1}
    assert result.report.ok and result.report.max_abs_diff == 0


# ------------------------------------------------------------------------------------------------------ calling a pass


def test_a_pass_alone_is_called_on_any_model() -> None:
    before = model()
    source = before.SerializeToString()
    for given in (before, source, gs.import_onnx(before)):
        assert ops(EliminateNoops()(given)) == ["Neg", "Mul", "Tanh", "Add", "Abs"]
    assert before.SerializeToString() == source


def test_a_pipeline_is_called_like_a_pass() -> None:
    assert ops(Pipeline(FoldConstants(), EliminateNoops())(model())) == ["Mul", "Tanh", "Add", "Abs"]


@pytest.mark.parametrize("wrong", [UnknownOp(), CutEdge(), RenameOutput()], ids=lambda w: type(w).__name__)
def test_a_pass_that_breaks_the_graph_raises_where_nobody_rolls_back(wrong: Pass) -> None:
    with pytest.raises(PassError, match="do-harm left the graph broken: "):
        Pipeline(FoldConstants(), wrong)(model())


def test_an_exception_of_a_pass_comes_through_where_nobody_rolls_back() -> None:
    with pytest.raises(swinopt.PassError, match="ZeroDivisionError"):
        Raise()(model())


def test_an_option_of_another_type_is_refused() -> None:
    with pytest.raises(swinopt.OptionError, match="budget is 'abc', and not a int"):
        swinopt.Pipeline.parse("fold-constants(budget='abc')")
