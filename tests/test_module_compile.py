"""Modules under torch.compile, torch.export and autocast: whole graphs, one for all lengths."""

import itertools

import pytest
import torch
from marks import TORCH_LOWERS_LSTM
from pairs import CELLS, CLASSES, LAYERS, assert_same_values, copied, outputs_and_gradients, pair, states
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnkernels

dynamo_testing = pytest.importorskip("torch._dynamo.testing")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch.export's own

each_layer = pytest.mark.parametrize("name", LAYERS)
each_cell = pytest.mark.parametrize("name", CELLS)
each_class = pytest.mark.parametrize("name", CLASSES)

STACK = dict(num_layers=2, bidirectional=True, batch_first=True)


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


def compiled(module: nn.Module):
    """-> the module compiled whole, through AOTAutograd, and the counter of its graphs."""
    counter = dynamo_testing.CompileCounterWithBackend("aot_eager")
    return torch.compile(module, backend=counter, fullgraph=True), counter


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@each_layer
def test_one_graph_serves_all_lengths_and_batches(name, backend):
    _, module = pair(name, 3, 4, batch_first=True)
    call, counter = compiled(module)
    graphs = []
    for rows, columns in ((5, 3), (6, 3), (7, 4), (8, 9), (11, 2), (2, 5), (3, 7)):
        x = random(rows, columns, 3)
        output, expected = call(x)[0], module(x)[0]
        assert_same_values(output, expected)
        leaves = [x, *module.parameters()]
        gradients = [torch.autograd.grad(out.pow(2).sum(), leaves) for out in (output, expected)]
        assert_same_values(gradients[0], gradients[1])
        graphs.append(counter.frame_count)
    assert graphs == [1, 2, 3, 3, 3, 3, 3]  # each axis becomes dynamic when its size first changes, and stays so


@each_layer
@pytest.mark.parametrize("options", [{}, STACK | dict(dropout=0.5)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_compiled_values_and_gradients_are_the_eager_ones(name, options, training, backend):
    _, module = pair(name, 3, 4, **options)
    module.train(training)
    call, _ = compiled(module)
    x = random(5, 3, 3)
    hx = states(module, 5 if options else 3)
    results = []
    for run in (module, call):
        own = copied((x, hx))
        module.zero_grad()
        torch.manual_seed(2)
        output, final = run(*own)
        leaves = [own[0], *(own[1] if name == "LSTM" else (own[1],)), *module.parameters()]
        results.append((output, final, torch.autograd.grad(output.pow(2).sum(), leaves)))
    assert_same_values(results[1], results[0])


@each_layer
def test_a_projected_lstm_and_an_unbatched_input_compile(name, backend):
    _, module = pair(name, 3, 4, 2, **({"proj_size": 2} if name == "LSTM" else {}))
    call, _ = compiled(module)
    x = random(5, 3)
    assert_same_values(call(x), module(x))


@each_cell
def test_a_loop_over_a_cell_compiles_whole(name, backend):
    _, cell = pair(name, 3, 4)

    def loop(xs):
        hx = None
        for x in xs.unbind(0):
            hx = cell(x, hx)
        return hx

    counter = dynamo_testing.CompileCounterWithBackend("aot_eager")
    xs = random(4, 2, 3)
    assert_same_values(torch.compile(loop, backend=counter, fullgraph=True)(xs), loop(xs))
    assert counter.frame_count == 1


@pytest.mark.backends("cpu")  # Inductor calls a C++ compiler: once is enough
@each_layer
def test_a_model_with_a_module_inside_compiles_with_inductor(name, backend):
    torch.manual_seed(0)
    rnn = getattr(rnnkernels, name)(3, 4, batch_first=True)

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = rnn, nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(x.tanh())[0]).log_softmax(-1)

    model = Tagger()
    call = torch.compile(model, fullgraph=True)
    x = torch.randn(2, 5, 3)
    gradients = []
    for run in (model, call):
        model.zero_grad()
        run(x)[..., 0].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(call(x), model(x))
    torch.testing.assert_close(gradients[1], gradients[0])


@each_layer
def test_a_packed_sequence_may_be_an_argument_of_a_compiled_module(name, backend):
    _, module = pair(name, 3, 4)
    call, counter = compiled(module)
    for lengths, given in itertools.product(((3, 5, 2), (4, 4), (7, 1, 1, 6)), (False, True)):
        sequence = pack_sequence([torch.randn(length, 3, dtype=torch.float64) for length in lengths], enforce_sorted=False)
        hx = states(module, len(lengths)) if given else None
        (output, final), (expected, expected_final) = call(sequence, hx), module(sequence, hx)
        assert isinstance(output, PackedSequence)
        assert_same_values(output.data, expected.data)
        assert_same_values(final, expected_final)
        gradients = [torch.autograd.grad(data.pow(2).sum(), list(module.parameters())) for data in (output.data, expected.data)]
        assert_same_values(gradients[0], gradients[1])
    assert counter.frame_count <= 4  # with states and without, each for fixed and then for any sizes


@each_class
def test_replacing_a_weight_is_seen_by_compiled_code(name, backend):
    _, module = pair(name, 3, 4)
    call, _ = compiled(module)
    x = random(5, 3)
    call(x)
    for key, parameter in list(module.named_parameters()):
        setattr(module, key, nn.Parameter(-2 * parameter.detach()))
    assert_same_values(call(x), module(x))


@each_class
def test_parametrized_weights_compile(name, backend):
    _, module = pair(name, 3, 4)
    nn.utils.parametrizations.weight_norm(module, "weight_hh" if name in CELLS else "weight_hh_l0")
    call, _ = compiled(module)
    x = random(5, 3)
    assert_same_values(call(x), module(x))


@each_layer
def test_changing_dropout_and_mode_is_seen_by_compiled_code(name, backend):
    _, module = pair(name, 3, 4, 2, dropout=0.5)
    call, _ = compiled(module)
    x = random(5, 2, 3)
    for training, p in ((True, 0.5), (False, 0.5), (True, 1.0)):
        module.train(training).dropout = p
        results = []
        for run in (module, call):
            torch.manual_seed(6)
            results.append(run(x)[0])
        assert_same_values(results[1], results[0])


# --- export --------------------------------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_lengths_and_batches_dynamic(name, strict, backend):
    _, module = pair(name, 3, 4, **STACK)
    module.eval()
    steps, batch = torch.export.Dim("steps", min=1), torch.export.Dim("batch", min=1)
    shapes = {"input": {0: batch, 1: steps}}
    program = torch.export.export(module, (random(3, 5, 3).detach(),), dynamic_shapes=shapes, strict=strict)
    operators = {node.target for node in program.graph_module.modules() for node in getattr(node, "graph", program.graph).nodes}
    assert any("rnnkernels" in str(target) for target in operators)
    for shape in ((3, 5, 3), (1, 1, 3), (2, 40, 3)):
        x = random(*shape).detach()
        assert_same_values(program.module()(x), module(x))
    assert list(program.state_dict) == list(module.state_dict())


@each_cell
def test_a_cell_exports_with_a_dynamic_batch(name, backend):
    _, cell = pair(name, 3, 4)
    hx = states(cell, 5)
    batch = torch.export.Dim("batch", min=1)
    own = ({0: batch}, {0: batch}) if name == "LSTMCell" else {0: batch}
    program = torch.export.export(cell, (random(5, 3), hx), dynamic_shapes={"input": {0: batch}, "hx": own})
    x, hx = random(2, 3), states(cell, 2)
    assert_same_values(program.module()(x, hx), cell(x, hx))


# --- autocast ------------------------------------------------------------------------------------------------------------


def call_under_autocast(module: nn.Module, *args):
    with torch.autocast("cpu", torch.bfloat16):
        results = outputs_and_gradients(module, *args)
    return {key: value.dtype for key, value in results.items()}


@each_class
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_torch_nns_dtypes(name, input_dtype, state_dtype, backend):
    torchs, ours = pair(name, 3, 4, dtype=torch.float32)
    x = torch.randn(5, 3, dtype=input_dtype, requires_grad=True)
    hx = None
    if state_dtype is not None:
        hx = states(torchs, 5 if name in CELLS else None)
        hx = tuple(h.detach().to(state_dtype) for h in hx) if isinstance(hx, tuple) else hx.detach().to(state_dtype)
    actual = call_under_autocast(ours, *copied((x, hx)))
    if name == "LSTM" and not TORCH_LOWERS_LSTM:
        parameters = {f"gradient of {n}": p.dtype for n, p in ours.named_parameters()}
        results = {f"result {i}": torch.bfloat16 for i in range(3)}
        assert actual == {**results, "gradient of argument 0": input_dtype, **parameters}
    else:
        assert actual == call_under_autocast(torchs, *copied((x, hx)))


@each_layer
def test_autocast_lets_input_and_weights_differ_in_dtype(name, backend):
    module = getattr(rnnkernels, name)(3, 4)
    x = torch.randn(5, 2, 3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="does not match weight dtype"):
        module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x)[0].shape == (5, 2, 4)


@each_layer
def test_autocast_compiles(name, backend):
    module = getattr(rnnkernels, name)(3, 4, num_layers=2)
    call, _ = compiled(module)
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        result, expected = call(x), module(x)
    assert result[0].dtype == expected[0].dtype
    torch.testing.assert_close(result, expected)
