"""Export: both exporters write what PyTorch computes, the module stays as it was, and what goes wrong says why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

import swinopt
from swinopt.errors import MissingDependencyError, ModelError, OptionError, VerificationError
from swinopt.export import export, randomize

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TINY: dict[str, Any] = {
    **{"img_size": 56, "window_size": 7, "depths": (1, 1), "embed_dim": 16, "num_heads": (1, 2), "num_classes": 5}
}
NAME = "swin_tiny_patch4_window7_224"
EXPORTERS = ("dynamo", "torchscript")


def tiny_swin(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return randomize(timm.create_model(NAME, **TINY), seed)


class Sum(torch.nn.Module):
    """Adds a buffer, a plain tensor attribute and a parameter to its input, and has dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.register_buffer("buffer", torch.full((4,), 10.0))
        self.plain = torch.full((4,), 100.0)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: Any) -> Any:
        return self.dropout(x + self.weight + self.buffer + self.plain)


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("dynamic_batch", [False, True])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_swin_is_exported_and_checked(exporter: Any, dynamic_batch: bool, tmp_path: Path) -> None:
    path = export(tiny_swin(), tmp_path / "swin.onnx", exporter=exporter, dynamic_batch=dynamic_batch)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert (batch.dim_param, batch.dim_value) == (("batch", 0) if dynamic_batch else ("", 1))
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["input", "output"]
    assert [file.name for file in tmp_path.iterdir()] == ["swin.onnx"]


def test_both_exporters_write_the_same_numbers(tmp_path: Path) -> None:
    paths = [export(tiny_swin(), tmp_path / f"{name}.onnx", exporter=name, dynamic_batch=True) for name in EXPORTERS]
    comparison = swinopt.compare(*paths)
    assert comparison.passed and comparison.max_abs < 1e-5


@pytest.mark.parametrize(("exporter", "opset", "written"), [("dynamo", None, 20), ("torchscript", None, 17)])
def test_default_opsets(exporter: Any, opset: int | None, written: int, tmp_path: Path) -> None:
    path = export(Sum(), tmp_path / "m.onnx", exporter=exporter, opset=opset, inputs=torch.zeros(2, 4))
    assert onnx.load(path).opset_import[0].version == written


def test_an_opset_can_be_asked_for(tmp_path: Path) -> None:
    path = export(Sum(), tmp_path / "m.onnx", exporter="torchscript", opset=15, inputs=torch.zeros(2, 4))
    assert onnx.load(path).opset_import[0].version == 15


def test_a_name_and_a_seed_are_a_model(tmp_path: Path) -> None:
    first, again, other = (
        onnx.load(export(NAME, tmp_path / f"{n}.onnx", exporter="torchscript", seed=seed, **TINY))
        for n, seed in enumerate((3, 3, 4))
    )
    weights = [{t.name: t.raw_data for t in model.graph.initializer} for model in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_the_seed_of_an_export_leaves_that_of_the_process_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    export(NAME, tmp_path / "m.onnx", exporter="torchscript", seed=1, check=False, **TINY)
    assert torch.equal(torch.rand(3), expected)


def test_several_inputs_and_outputs_have_names(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            return x + y, {"difference": x - y}

    inputs = (torch.zeros(2, 3), torch.ones(2, 3))
    model = onnx.load(export(Two(), tmp_path / "default.onnx", inputs=inputs))
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    assert names == ["input_0", "input_1", "output_0", "output_1"]
    model = onnx.load(
        export(Two(), tmp_path / "own.onnx", inputs=inputs, input_names=["a", "b"], output_names=["sum", "difference"])
    )
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["a", "b", "sum", "difference"]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_integer_inputs_are_checked_as_given(exporter: Any, tmp_path: Path) -> None:
    embedding = torch.nn.Embedding(7, 3)
    path = export(embedding, tmp_path / "m.onnx", exporter=exporter, inputs=torch.tensor([[0, 6]]), dynamic_batch=True)
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64


def test_half_precision_is_held_to_what_it_can(tmp_path: Path) -> None:
    path = export(tiny_swin().half(), tmp_path / "m.onnx", exporter="torchscript")
    assert onnx.load(path).graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_exporters_keep_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: Any) -> None:
    for exporter in EXPORTERS:
        export(Sum(), tmp_path / "m.onnx", exporter=exporter, inputs=torch.zeros(2, 4))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


# --------------------------------------------------------------------------------------------- one device, eval mode


class Elsewhere(torch.Tensor):
    """A tensor that claims to lie on a GPU and, like one there, does not compute with tensors on the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.device.__get__:
            return torch.device("cuda", 0)
        if func.__name__ in ("__get__", "detach"):
            with torch._C.DisableTorchFunctionSubclass():
                found = func(*args)
                return found.as_subclass(torch.Tensor) if func.__name__ == "detach" else found
        raise RuntimeError(f"Expected all tensors to be on the same device, and {func.__name__} got two")


@pytest.mark.parametrize("kind", ["buffer", "plain"])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_tensors_on_another_device_are_brought_along(exporter: Any, kind: str, tmp_path: Path) -> None:
    model = Sum()
    away = getattr(model, kind).as_subclass(Elsewhere)
    setattr(model, kind, away)
    with pytest.raises(RuntimeError, match="same device"):
        model(torch.zeros(2, 4))
    export(model, tmp_path / "m.onnx", exporter=exporter, inputs=torch.zeros(2, 4))
    assert getattr(model, kind) is away


@pytest.mark.gpu
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_model_on_two_real_devices_is_exported(exporter: Any, tmp_path: Path) -> None:
    model = tiny_swin().cuda()
    buffer = next(name for name, _ in model.named_buffers())
    owner, _, name = buffer.rpartition(".")
    model.get_submodule(owner)._buffers[name] = model.get_buffer(buffer).cpu()
    export(model, tmp_path / "m.onnx", exporter=exporter)
    assert model.get_buffer(buffer).device.type == "cpu"
    assert all(parameter.is_cuda for parameter in model.parameters())


def test_training_mode_and_parameters_are_put_back(tmp_path: Path) -> None:
    model = Sum().train()
    model.dropout.eval()
    parameters = list(model.parameters())
    export(model, tmp_path / "m.onnx", inputs=torch.zeros(2, 4))
    assert model.training and not model.dropout.training
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))


def test_training_mode_is_put_back_after_a_failure(tmp_path: Path) -> None:
    model = Sum().train()
    with pytest.raises(ModelError, match="does not run on inputs of shape"):
        export(model, tmp_path / "m.onnx", inputs=torch.zeros(2, 5))
    assert model.training


def test_weights_without_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="meta device"):
        export(Sum().to("meta"), tmp_path / "m.onnx", inputs=torch.zeros(2, 4))


# ------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_file_that_computes_something_else_is_refused(exporter: Any, tmp_path: Path) -> None:
    class Frozen(torch.nn.Module):
        """What the trace sees once is random: the exported constant cannot match the next call."""

        def forward(self, x: Any) -> Any:
            if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
                return x
            return x + 1

    with pytest.raises(VerificationError, match="does not compute what the PyTorch model computes"):
        export(Frozen(), tmp_path / "m.onnx", exporter=exporter, inputs=torch.zeros(2, 4))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_off_is_written_without_the_check(tmp_path: Path) -> None:
    class Traced(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x + 1 if torch.jit.is_tracing() else x

    path = export(Traced(), tmp_path / "m.onnx", exporter="torchscript", inputs=torch.zeros(2, 4), check=False)
    assert path.exists()


def test_a_batch_frozen_by_the_trace_is_refused(tmp_path: Path) -> None:
    class Flat(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.reshape(int(x.shape[0]), -1).sum(0, keepdim=True) / int(x.shape[0])

    with pytest.raises(VerificationError):
        export(Flat(), tmp_path / "m.onnx", exporter="torchscript", inputs=torch.zeros(1, 4), dynamic_batch=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_what_an_exporter_cannot_do_is_one_line(exporter: Any, tmp_path: Path) -> None:
    class Solver(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.eigvals(x).real

    with pytest.raises(ModelError, match=f"the {exporter} exporter cannot export Solver") as caught:
        export(Solver(), tmp_path / "m.onnx", exporter=exporter, inputs=torch.eye(3))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("swin_tny_patch4_window7_224", {}, "did you mean swin_tiny_patch4_window7_224"),
        (NAME, {"depth": 3}, "cannot create .* with these options"),
        (NAME, {"exporter": "caffe"}, "there are: dynamo, torchscript"),
        (Sum(), {}, "does not declare the size of its input"),
        (Sum(), {"img_size": 56}, "together with a module: img_size"),
        (Sum(), {"inputs": "image.png"}, "inputs are positional"),
        (Sum(), {"inputs": [object()]}, "inputs must be tensors or arrays"),
        (Sum(), {"inputs": torch.zeros(2, 4), "input_names": ["a", "b"]}, "the model has 1 inputs"),
        (Sum(), {"inputs": torch.tensor(1.0), "dynamic_batch": True}, "one of them is a scalar"),
    ],
)
def test_wrong_options_say_what_is_right(model: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        export(model, tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["missing/m.onnx", "."])
def test_a_path_that_cannot_be_written_is_told_before_the_export(path: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be written"):
        export("no such model, which would be found out later", tmp_path / path)


@pytest.mark.parametrize(
    ("package", "extra"), [("torch", "export"), ("timm", "export"), ("onnxscript", "export"), ("onnxruntime", "cpu")]
)
def test_missing_packages_are_named_with_their_extra(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[export.__module__], "find_spec", lambda name: None if name == package else object())
    if package in ("torch", "timm"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf'{package}: pip install "swinopt\[{extra}\]"'):
        export(NAME, tmp_path / "m.onnx", seed=0, **TINY)


# ---------------------------------------------------------------------------------------------------------- randomize


def test_randomize_leaves_no_zeros_and_ones() -> None:
    model = timm.create_model(NAME, **TINY)
    zeros = [name for name, p in model.named_parameters() if p.min() == p.max()]
    assert any("bias" in name for name in zeros) and any("norm" in name for name in zeros)
    assert randomize(model) is model
    assert not [name for name, p in model.named_parameters() if p.numel() > 1 and p.min() == p.max()]


def test_randomize_leaves_the_logit_scale_alone() -> None:
    options = {**TINY, "img_size": 64, "window_size": 8}
    model = timm.create_model("swinv2_tiny_window8_256", **options)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "logit_scale" in name}
    randomize(model)
    after = dict(model.named_parameters())
    assert before and all(torch.equal(value, after[name]) for name, value in before.items())


def test_randomize_is_seeded() -> None:
    def bias(seed: int) -> Any:
        return randomize(torch.nn.Linear(4, 4), seed).bias

    assert torch.equal(bias(1), bias(1)) and not torch.equal(bias(1), bias(2))
