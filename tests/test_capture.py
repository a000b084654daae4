"""What capture makes of modules of every kind: names, ties, constants, outputs, errors; nothing changes."""
import contextlib
import copy
import dataclasses
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxrebasin.capture import Program, capture
from fxrebasin.errors import CaptureError, StateError


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def run(module: nn.Module, inputs):
    """What the module itself computes, in eval mode and without the fused attention path."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            module.eval()
            if isinstance(inputs, dict):
                return module(**inputs)
            return module(*inputs) if isinstance(inputs, tuple) else module(inputs)
    finally:
        module.load_state_dict(state)
        torch.backends.mha.set_fastpath_enabled(True)


def snapshot(module: nn.Module):
    tensors = {name: (id(tensor), tensor._version, tensor.grad) for name, tensor in
               (*module.named_parameters(), *module.named_buffers())}
    return tensors, [sub.training for sub in module.modules()], [set(vars(sub)) for sub in module.modules()]


def check(module: nn.Module, inputs, front_end: str = "export", outputs=None) -> Program:
    """Capture, and hold the graph against the module: the same numbers, and nothing changed."""
    module.train()
    before = snapshot(module)
    program = capture(module, inputs)
    assert snapshot(module) == before
    assert program.front_end == front_end
    state = module.state_dict()
    assert [*program.state] == [name for name in state if name not in program.passed]
    assert all(program.state[name] == tuple(state[name].shape) for name in program.state)
    nodes = list(program.module.graph.nodes)
    assert all("val" in node.meta for node in nodes if node.op != "output")
    assert {node.name for node in nodes if node.op in ("placeholder", "get_attr")} == set(program.sources)
    assert all(isinstance(node.target, torch._ops.OpOverload) or node.target.__name__ == "getitem"
               for node in nodes if node.op == "call_function")
    assert not any("_assert" in str(node.target) or str(node.target).split(".")[1].endswith("_")
                   for node in nodes if isinstance(node.target, torch._ops.OpOverload))
    values = program.interpret(state, inputs)
    expected = {"output": run(module, inputs)} if outputs is None else outputs(run(module, inputs))
    assert list(values) == list(expected)
    for path, value in expected.items():
        error = (values[path] - value).abs().max().item() / (value.abs().max().item() or 1)
        print(f"{path}: relative error {error:.1e}")
        assert error < 1e-13
    return program


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


class TiedGPT(nn.Module):
    """Embedding and head are one tensor, and one block is used twice."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, 8), nn.Embedding(6, 8)
        block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList([block, block])
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        mask = torch.triu(torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool), 1)
        for block in self.blocks:
            x = block(x, src_mask=mask)
        return self.head(x)


class BatchNormCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 2)
        self.drop = nn.Dropout(0.5)
        self.bn.running_mean.normal_()

    def forward(self, x):
        return self.fc(self.drop(F.relu_(self.bn(self.conv(x))).mean((2, 3))))


def sources(program: Program, kind: str):
    return {source.name: source.value for source in program.sources.values() if source.kind == kind}


def ops(program: Program) -> set[str]:
    return {str(node.target) for node in program.module.graph.nodes if node.op == "call_function"}


def test_mlp():
    program = check(MLP(), torch.randn(2, 5))
    assert ops(program) == {"aten.linear.default", "aten.relu.default"}
    assert list(sources(program, "state")) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert list(sources(program, "input")) == ["x"]
    assert (program.ties, program.passed, program.notes) == ({}, (), ())
    relu = next(node for node in program.module.graph.nodes if "relu" in node.name)
    assert program.where(relu).startswith("test_capture.py:")
    assert program.where(relu).endswith("in forward: return self.fc2(F.relu(self.fc1(x)))")


def test_one_sequential_of_library_modules_has_no_line_of_the_users():
    program = check(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(2, 5))
    assert {program.where(node) for node in program.module.graph.nodes} == {""}


def test_ties_have_one_canonical_name_which_the_graph_uses():
    program = check(TiedGPT(), torch.randint(0, 11, (2, 5)))
    assert program.ties["head.weight"] == "wte.weight"
    assert program.ties["blocks.1.linear1.weight"] == "blocks.0.linear1.weight"
    assert set(sources(program, "state")) == set(program.state) - set(program.ties)
    users = {program.sources[node.name].name: len(node.users) for node in program.module.graph.nodes
             if node.op == "placeholder"}
    assert users["wte.weight"] == 2 and users["blocks.0.linear1.weight"] == 2


def test_a_parameter_over_the_same_memory_is_a_tie():
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = nn.Parameter(module[0].weight.data)
    assert capture(module, torch.randn(2, 4)).ties == {"1.weight": "0.weight"}


def test_a_transposed_view_is_made_of_what_it_lies_in():
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    module[1].weight = nn.Parameter(module[0].weight.data.t())
    program = capture(module, torch.randn(2, 4))
    assert list(program.state) == ["0.weight", "1.weight", "2.weight", "2.bias"] and not program.passed
    assert [output.path for output in program.outputs if output.kind == "tied"] == ["1.weight"]
    assert program.notes == ("1.weight lies in the memory of 0.weight: they are one, and are reordered together",)


def test_neighbours_in_one_flat_buffer_are_separate():
    flat = torch.randn(32)
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[0].weight = nn.Parameter(flat[:16].view(4, 4))
    module[1].weight = nn.Parameter(flat[16:].view(4, 4))
    program = check(module, torch.randn(2, 4))
    assert (list(program.state), program.ties, program.notes) == (["0.weight", "1.weight"], {}, ())


def test_batch_norm_statistics_are_state_and_its_counter_is_passed():
    program = check(BatchNormCNN(), torch.randn(2, 3, 5, 5))
    assert {"bn.running_mean", "bn.running_var"} <= set(sources(program, "state"))
    assert program.passed == ("bn.num_batches_tracked",)
    assert sources(program, "constant")["bn.num_batches_tracked"] == 0
    assert "aten._native_batch_norm_legit_no_training.default" in ops(program)


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_without_the_fused_path(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert torch.backends.mha.get_fastpath_enabled()
    program = check(encoder, torch.randn(2, 5, 8))
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any("transformer_encoder_layer" in op or "native_multi_head" in op for op in ops(program))
    assert "aten.scaled_dot_product_attention.default" in ops(program)


def test_multihead_attention_itself_returns_two_tensors():
    x = torch.randn(2, 5, 8)
    check(nn.MultiheadAttention(8, 2, batch_first=True), (x, x, x), outputs=lambda y: {"0": y[0], "1": y[1]})


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x, *, scale=1.0, pair=None, **extra):
        hidden = [pair[0] + pair[1], (extra["shift"],)]
        return {"logits": self.fc(x) * scale, "hidden": hidden, "size": 7, "none": None}


def test_keyword_arguments_and_nested_dict_outputs():
    x, a, b, shift = torch.randn(4, 2, 4)
    inputs = {"pair": (a, b), "x": x, "shift": shift, "scale": 2.5}
    program = check(Keywords(), inputs, outputs=lambda y: {
        "logits": y["logits"], "hidden.0": y["hidden"][0], "hidden.1.0": y["hidden"][1][0]})
    assert set(sources(program, "input")) == {"x", "pair.0", "pair.1", "shift"}
    assert [output.path for output in program.outputs if output.node is None] == ["size", "none"]
    assert [output.path for output in program.outputs] == ["logits", "hidden.0", "hidden.1.0", "size", "none"]


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    aux: tuple
    note: str = "as is"


Pair = namedtuple("Pair", "first second")


class Cache:
    """Holds its tensors out of the reach of containers, as a key-value cache does."""

    def __init__(self, keys):
        self.length, self.layers = 3, [keys, keys + 1]


class Returning(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.fc, self.wrap = nn.Linear(4, 3), wrap

    def forward(self, x):
        return self.wrap(self.fc(x))


def test_dataclass_namedtuple_and_object_outputs():
    x = torch.randn(2, 4)
    program = check(Returning(lambda y: Result(y, (y.exp(),))), x,
                    outputs=lambda r: {"logits": r.logits, "aux.0": r.aux[0]})
    assert [output.path for output in program.outputs] == ["logits", "aux.0", "note"]
    check(Returning(lambda y: Pair(y, y + 1)), x, outputs=lambda r: {"first": r.first, "second": r.second})
    check(Returning(lambda y: {"cache": Cache(y)}), x,
          outputs=lambda r: {"cache.0": r["cache"].layers[0], "cache.1": r["cache"].layers[1]})


def test_outputs_whose_paths_are_alike_are_all_there():
    module = Returning(lambda y: {"a.b": y, "a": {"b": y + 1}, "decision": [y + 2]})
    program = capture(module, torch.randn(2, 4))
    assert [output.path for output in program.outputs] == ["a.b", "a.b", "decision.0"]
    assert len({output.node for output in program.outputs}) == 3
    assert not any(output.decision for output in program.outputs)


class Constants(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.register_buffer("table", torch.randn(3), persistent=False)
        self.register_buffer("index", torch.tensor([2, 0, 1]))
        self.plain = torch.randn(3)

    def forward(self, x):
        return (self.fc(x) * self.table + self.plain + torch.tensor([1.0, 2.0, 3.0]))[:, self.index]


def test_constants_keep_their_values():
    module = Constants()
    program = check(module, torch.randn(2, 4))
    constants = sources(program, "constant")
    assert torch.equal(constants["table"], module.table) and torch.equal(constants["plain"], module.plain)
    assert torch.equal(constants["index"], module.index) and program.passed == ("index",)
    assert any(torch.equal(value, torch.tensor([1.0, 2.0, 3.0])) for value in constants.values())
    assert set(program.state) == {"fc.weight", "fc.bias"}


def test_the_meta_device_needs_no_data():
    with torch.device("meta"):
        module = TiedGPT()
    program = capture(module, torch.zeros(2, 5, dtype=torch.long))
    assert program.ties["head.weight"] == "wte.weight" and all(p.is_meta for p in module.parameters())
    assert program.state == capture(TiedGPT(), torch.zeros(2, 5, dtype=torch.long)).state
    with torch.device("meta"):
        constants = Constants()
    constants.plain = torch.ones(3)  # real beside meta
    program = capture(constants, torch.zeros(2, 4, device="meta"))
    assert sources(program, "constant")["table"] is None and sources(program, "constant")["plain"] is not None
    state = {name: torch.zeros(shape) for name, shape in program.state.items()}
    with pytest.raises(CaptureError, match="the constant table has no value"):
        program.interpret(state, torch.zeros(2, 4))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 6)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        self.count += 1
        self.last = y = self.fc(x)
        y[:, :2] = y[:, 2:4] * self.calls
        y[:, 3].clamp_(min=0)
        return y


def test_writes_in_place_are_functional_and_noted():
    module = InPlace()
    program = check(module, torch.randn(2, 4))
    assert module.calls == 0 and module.count == 0
    assert [output.path for output in program.outputs if output.kind == "tied"] == ["calls"]
    assert "aten.slice_scatter.default" in ops(program)
    written = {note.split(":")[0] for note in program.notes}
    assert written == {"forward writes to calls", "forward writes to count", "forward assigns last"}


def test_parametrised_weights_have_their_originals_names():
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.ReLU(),
                           nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)))
    program = check(module, torch.randn(2, 4))
    assert {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1",
            "2.parametrizations.weight.original"} <= set(sources(program, "state"))
    program = check(torch.nn.utils.weight_norm(nn.Linear(4, 5)), torch.randn(2, 4))
    assert set(sources(program, "state")) == {"weight_g", "weight_v", "bias"}


def test_hooks_run_and_stay():
    module = MLP()
    seen = []
    module.fc1.register_forward_hook(lambda m, args, y: y * 2)
    module.register_forward_pre_hook(lambda m, args: seen.append(len(args)))
    check(module, torch.randn(2, 5))
    assert set(seen) == {1} and len(module.fc1._forward_hooks) == 1


class Modes(MLP):
    def __init__(self, *modes):
        super().__init__()
        self.modes = modes

    def forward(self, x):
        with torch.no_grad():
            h = self.fc1(x)
        with contextlib.ExitStack() as stack:
            for mode in self.modes:
                stack.enter_context(mode())
            return self.fc2(h)


def off():
    return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("modes", [[off], [torch.no_grad, off], [torch.enable_grad], [torch.enable_grad, off],
                                   [torch.no_grad, torch.enable_grad], [torch.inference_mode]])
def test_gradient_modes_and_autocast_leave_no_region_behind(modes, device):
    with torch.device(device):
        program = capture(Modes(*modes), torch.randn(2, 5, device="cpu"))
    assert program.front_end == "export" and ops(program) == {"aten.linear.default"} and program.notes == ()
    assert torch.is_grad_enabled()


class Slope(nn.Module):
    """Returns W^T v: the rows of W are not free, though all that a trace sees of the way back is constant."""

    def __init__(self, branch: bool):
        super().__init__()
        self.fc, self.branch = nn.Linear(5, 6), branch

    def forward(self, x):
        if self.branch and x.sum() > 1e9:
            return x
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = self.fc(x)
            slope, = torch.autograd.grad(y, x, torch.arange(6.0).expand(y.shape), retain_graph=True)
        return slope + 0 * F.relu(y).sum()


@pytest.mark.parametrize("branch", [False, True])
def test_a_module_that_differentiates_is_refused(branch):
    words = r"Slope cannot be captured at test_capture.py:\d+ \(slope, = .*: forward computes gradients"
    with pytest.raises(CaptureError, match=words):
        capture(Slope(branch), torch.randn(2, 5))


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        h = self.fc1(x)
        if h.abs().sum() > 0:
            h = F.relu(h)
        h = h * (1 + int(h.sum().item() > 0))
        h = h[torch.nonzero(x[:, 0] > -100)[:, 0]]
        h[x[:, 1] > -100] += 1
        return self.fc2(h) + self.fc1.bias.tolist()[0]


def test_a_branch_on_values_is_recorded():
    module = Branch()
    program = check(module, torch.randn(2, 4), front_end="recorded")
    assert module.calls == 0 and program.notes[0].startswith("recorded at test_capture.py:")
    decisions = [output for output in program.outputs if output.decision]
    assert decisions and program.outputs[0].path == "output" and not program.outputs[0].decision
    shapes = {tuple(output.node.meta["val"].shape) for output in decisions}
    assert shapes == {(), (6,)}  # those of the input alone are left out
    assert "test_capture.py" in program.where(decisions[0].node)


class Unexportable(MLP):
    def forward(self, x):
        if torch.compiler.is_exporting():
            raise RuntimeError("not for export")
        return super().forward(x)


def test_a_record_without_a_branch_says_so():
    program = check(Unexportable(), torch.randn(2, 5), front_end="recorded")
    note, = program.notes
    assert "not for export" in note and note.endswith("no branch depends on values, so nothing was left out")
    assert not any(output.decision for output in program.outputs)
    assert "only the branch that the example inputs take" in capture(Branch(), torch.randn(2, 4)).notes[0]


def test_a_hopeless_module_says_where_and_what_to_do():
    with torch.device("meta"):
        module = Branch()
    with pytest.raises(CaptureError) as error:
        capture(module, torch.randn(2, 4))
    text = str(error.value)
    assert "\n" not in text and "if h.abs().sum() > 0:" in text and "test_capture.py:" in text
    assert "real device, not on meta" in text and "capture the part of the module without" in text


@pytest.mark.parametrize("inputs, words", [
    (torch.randn(2, 9, dtype=torch.float64), "shapes cannot be multiplied"),
    ((torch.randn(2, 5), torch.randn(2, 5)), "positional argument"),
    ({"y": torch.randn(2, 5)}, "unexpected keyword argument 'y'"),
])
def test_inputs_that_do_not_fit(inputs, words):
    with pytest.raises(CaptureError) as error:
        capture(MLP(), inputs)
    text = str(error.value)
    assert "\n" not in text and text.startswith("MLP does not run on the example inputs") and words in text


def test_nothing_to_capture():
    with pytest.raises(CaptureError, match="give example inputs"):
        capture(MLP())
    with pytest.raises(CaptureError, match="returns no tensor"):
        capture(Returning(lambda y: {"n": 3}), torch.randn(2, 4))
    with pytest.raises(CaptureError, match="give an nn.Module"):
        capture("resnet18", torch.randn(2, 4))


def test_an_exported_program_is_taken_as_it_is():
    module, x = TiedGPT().eval(), torch.randint(0, 11, (2, 5))
    exported = torch.export.export(module, (x,))
    program = capture(exported)
    assert program.front_end == "given" and list(program.state) == list(module.state_dict())
    assert program.ties["head.weight"] == "wte.weight"
    value = program.interpret(module.state_dict(), x)["output"]
    assert (value - run(module, x)).abs().max() < 1e-13
    x, a, b = torch.randn(3, 2, 4)
    keywords = {"x": x, "pair": (a, b), "shift": torch.ones(2)}
    exported = torch.export.export(Keywords().eval(), (), keywords)
    program = capture(exported)
    assert [output.path for output in program.outputs] == ["logits", "hidden.0", "hidden.1.0", "size", "none"]
    values = program.interpret(exported.state_dict, keywords)
    assert torch.equal(values["hidden.0"], keywords["pair"][0] + keywords["pair"][1])


def test_symbolic_sizes_are_refused():
    dynamic = torch.export.export(MLP(), (torch.randn(4, 5),), dynamic_shapes=({0: torch.export.Dim("n")},))
    with pytest.raises(CaptureError, match="shapes must be static"):
        capture(dynamic)


def test_graph_modules():
    x = torch.randn(2, 5)
    traced = torch.fx.symbolic_trace(MLP())
    check(traced, x)
    with pytest.raises(CaptureError, match="give example inputs"):
        capture(traced)
    program = capture(torch.export.export(MLP().eval(), (x,)).module())
    assert list(program.state) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]


def test_interpret_in_another_dtype_and_watch_every_node():
    module, x = BatchNormCNN().float(), torch.randn(2, 3, 5, 5, dtype=torch.float32)
    program = capture(module, x)
    state = copy.deepcopy(module).double().state_dict()
    seen = {}
    value = program.interpret(state, x.double(), lambda node, result: seen.setdefault(node.name, result))
    value = value["output"]
    assert value.dtype == torch.float64
    assert (value - run(module.double(), x.double())).abs().max() < 1e-14
    assert list(seen) == [node.name for node in program.module.graph.nodes]


def test_a_module_that_cannot_be_copied_is_put_back():
    module = InPlace()
    module.generator = (i for i in range(3))  # no copy of it can be made
    capture(module, torch.randn(2, 4))
    assert not hasattr(module, "last") and module.training and module.calls == 0
    check(module, torch.randn(2, 4))


def test_a_batch_of_one():
    check(MLP(), torch.randn(1, 5))


def test_a_plain_tensor_that_forward_changes_is_refused_and_left_alone():
    class Counting(Branch):
        def forward(self, x):
            self.plain += 1
            return super().forward(x)

    module = Counting()
    module.plain = torch.zeros(3)
    with pytest.raises(CaptureError, match="plain is mutated in the forward method"):
        capture(module, torch.randn(2, 4))
    assert torch.equal(module.plain, torch.zeros(3)) and module.calls == 0


def test_one_tensor_given_twice_is_one_input():
    class Two(MLP):
        def forward(self, x, y):
            return super().forward(x + y)

    x = torch.randn(2, 5)
    assert list(sources(check(Two(), (x, x)), "input")) == ["x"]
    assert list(sources(check(Two(), (x, x.clone())), "input")) == ["x", "y"]


def test_lazy_modules_and_missing_tensors():
    with pytest.raises(CaptureError, match="0.weight of Sequential has no shape yet"):
        capture(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 4))
    program = capture(MLP(), torch.randn(2, 5))
    with pytest.raises(StateError, match="the state has no fc1.weight"):
        program.interpret({}, torch.randn(2, 5))
