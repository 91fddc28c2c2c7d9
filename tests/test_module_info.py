"""torch's own descriptions of its modules (``module_db``): what its test suite runs on nn.LSTM and its kin, run on ours.

The same inputs and error inputs, and what upstream checks with them. Upstream expects grad, gradgrad and non_contiguous to fail
for nn.LSTM and nn.GRU with cuDNN; nothing is expected to fail here.
"""

import copy
import io
import pickle

import pytest
import torch
from pairs import CLASSES, assert_same_values, copied, tensors
from torch import nn

import rnnkernels

common_modules = pytest.importorskip("torch.testing._internal.common_modules", reason="torch's test helpers need expecttest")

INFOS = {info.name: info for info in common_modules.module_db if info.module_cls in {getattr(nn, name) for name in CLASSES}}
MODES = (True, False)


def inputs(name: str, dtype: torch.dtype, requires_grad: bool, training: bool) -> list:
    info = INFOS[f"nn.{name}"]
    return info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training)


def construct(package, name: str, constructor_input, **factory) -> nn.Module:
    torch.manual_seed(0)
    return getattr(package, name)(*constructor_input.args, **constructor_input.kwargs, **factory)


def cases(name: str, dtype: torch.dtype = torch.float64, requires_grad: bool = False, training: bool = True):
    """Our module and the arguments of one call, for each of upstream's module inputs."""
    for case in inputs(name, dtype, requires_grad, training):
        module = construct(rnnkernels, name, case.constructor_input, dtype=dtype).train(training)
        yield case, module, case.forward_input.args, case.forward_input.kwargs


each_class = pytest.mark.parametrize("name", CLASSES)
each_mode = pytest.mark.parametrize("training", MODES, ids=["train", "eval"])


def test_upstream_describes_all_four_classes():
    assert sorted(INFOS) == sorted(f"nn.{name}" for name in CLASSES)


@each_class
@each_mode
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch.nn's
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward(name, training, dtype, backend):
    for case, module, args, kwargs in cases(name, dtype, training=training):
        torchs = construct(nn, name, case.constructor_input, dtype=dtype).train(training)
        result = module(*args, **kwargs)
        torch.testing.assert_close(result, torchs(*args, **kwargs))
        if case.reference_fn is not None:
            expected = case.reference_fn(module, *args, **kwargs)
            torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@each_mode
def test_forward_of_packed_sequences(name, training, backend):
    """Upstream's packed inputs, which it describes for RNN and GRU only."""
    options = dict(is_rnn=False, with_packed_sequence=True)
    described = common_modules.module_inputs_torch_nn_RNN_GRU(None, "cpu", torch.float64, False, training, **options)
    packed = [c for c in described if isinstance(c.forward_input.args[0], nn.utils.rnn.PackedSequence)]
    assert len(packed) == 16
    for case in packed:
        module, torchs = (
            construct(package, name, case.constructor_input, dtype=torch.float64).train(training) for package in (rnnkernels, nn)
        )
        (output, final), (expected, expected_final) = module(*case.forward_input.args), torchs(*case.forward_input.args)
        assert_same_values(output.data, expected.data)
        assert_same_values(final, expected_final)


@each_class
def test_factory_kwargs(name):
    for case in inputs(name, torch.float32, False, True):
        module = construct(rnnkernels, name, case.constructor_input, device="meta", dtype=torch.float64)
        assert all(p.is_meta and p.dtype == torch.float64 for p in module.parameters())
        with torch.device("meta"):
            assert all(p.is_meta for p in construct(rnnkernels, name, case.constructor_input).parameters())


@each_class
def test_repr(name):
    for case, module, _, _ in cases(name):
        assert repr(module) == str(module) == repr(construct(nn, name, case.constructor_input))


@each_class
@each_mode
def test_save_load(name, training, backend):
    for _, module, args, kwargs in cases(name, training=training):
        expected = module(*args, **kwargs)
        by_pickle = pickle.loads(pickle.dumps(module))
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        by_torch = torch.load(buffer, weights_only=False)
        for loaded in (by_pickle, by_torch):
            assert loaded.training == training
            assert_same_values(loaded(*args, **kwargs), expected)


def non_contiguous(value: object) -> object:
    if isinstance(value, torch.Tensor):
        strided = torch.empty(*value.shape, 2, dtype=value.dtype)[..., 1].copy_(value.detach())
        assert value.numel() < 2 or not strided.is_contiguous()
        return strided.requires_grad_(value.requires_grad)
    return type(value)(non_contiguous(item) for item in value)


@each_class
@each_mode
def test_non_contiguous_tensors(name, training, backend):
    """Arguments and parameters are strided, all of them; upstream tries them one by one."""
    for _, module, args, _ in cases(name, requires_grad=True, training=training):
        strided = copy.deepcopy(module)
        for key, parameter in list(strided.named_parameters()):
            setattr(strided, key, nn.Parameter(non_contiguous(parameter)))
        results = []
        for own, own_args in ((module, copied(args)), (strided, non_contiguous(args))):
            own_results = tensors(own(*own_args))
            sum(r.pow(2).sum() for r in own_results).backward()
            leaves = [*tensors(own_args), *own.parameters()]
            results.append([*own_results, *(leaf.grad for leaf in leaves)])
        assert_same_values(results[1], results[0])


def check_derivatives(name: str, training: bool, check, every: int = 1) -> None:
    """Along random directions (``fast_mode``): gradients of every result by every argument and parameter."""
    for case, module, args, _ in list(cases(name, requires_grad=True, training=training))[::every]:
        leaves = [*tensors(args), *module.parameters()]
        structure = case.forward_input.args

        def call(*flat, module=module, structure=structure):
            given = iter(flat)

            def rebuilt(value):
                return next(given) if isinstance(value, torch.Tensor) else tuple(rebuilt(item) for item in value)

            own_args = rebuilt(structure)
            weights = dict(zip((key for key, _ in module.named_parameters()), given, strict=True))
            return tuple(tensors(torch.func.functional_call(module, weights, own_args)))

        assert check(call, tuple(leaves), fast_mode=True)


@each_class
@each_mode
def test_grad(name, training, backend):
    check_derivatives(name, training, torch.autograd.gradcheck)


@each_class
def test_gradgrad(name, backend):
    """In eval mode, where cuDNN refuses even the first derivative; every fifth input, because each takes most of a second."""
    check_derivatives(name, False, torch.autograd.gradgradcheck, every=5)


@each_class
@each_mode
def test_errors(name, training, backend):
    info = INFOS[f"nn.{name}"]
    described = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=training)
    assert described
    for error in described:
        case = error.module_error_input
        constructing = error.error_on == common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR
        if constructing:
            with pytest.raises(error.error_type, match=error.error_regex):
                construct(rnnkernels, name, case.constructor_input)
        else:
            module = construct(rnnkernels, name, case.constructor_input).train(training)
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*case.forward_input.args, **case.forward_input.kwargs)


@each_class
def test_to(name, backend):
    for _, module, args, kwargs in cases(name):
        expected = module(*args, **kwargs)
        parameters = list(module.parameters())
        module.to("cpu").to(torch.float64)
        assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
        assert_same_values(module(*args, **kwargs), expected)
        assert all(p.is_meta for p in copy.deepcopy(module).to("meta").parameters())
        assert all(p.dtype == torch.float32 for p in module.float().parameters())


@each_class
def test_to_empty(name, backend):
    for case, module, args, kwargs in cases(name):
        empty = construct(rnnkernels, name, case.constructor_input, device="meta", dtype=torch.float64)
        with torch.no_grad():
            ids = [id(p) for p in empty.parameters()]
            empty.to_empty(device="meta")
            assert [id(p) for p in empty.parameters()] == ids
        empty.to_empty(device="cpu").load_state_dict(module.state_dict())
        assert_same_values(empty(*args, **kwargs), module(*args, **kwargs))


@each_class
def test_train_and_eval_modes(name):
    for _, module, _, _ in cases(name):
        assert module.training and not module.eval().training and module.train().training
