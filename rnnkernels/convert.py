"""``replace_rnn_modules(model)``: make a model's torch.nn LSTMs and GRUs this package's, in place, and back.

A module's class is changed and nothing else: the object stays, and with it every reference to it, its parameters (so optimizers
keep working), buffers, hooks, parametrizations, training flag and whatever was attached to it. That is possible because both
classes keep the same attributes; :func:`torch.nn.utils.parametrize.register_parametrization` changes classes in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from .backends import FLOAT_DTYPES
from .cells import GRUCell, LSTMCell
from .modules import GRU, LSTM

Filter = Callable[[str, nn.Module], bool]

_OURS = {nn.LSTM: LSTM, nn.GRU: GRU, nn.LSTMCell: LSTMCell, nn.GRUCell: GRUCell}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}


@dataclass(frozen=True)
class Entry:
    """What happened to one recurrent module."""

    names: tuple[str, ...]  # every name the model has for it; "" is the model itself
    module: nn.Module
    before: type  # its class, without parametrizations
    after: type | None  # its new class, or None if it was left alone
    reason: str | None  # why it was left alone

    def __str__(self) -> str:
        outcome = f": {self.reason}" if self.after is None else f" -> {_public_name(self.after)}"
        return ", ".join(name or "(the model itself)" for name in self.names) + f": {_public_name(self.before)}{outcome}"


@dataclass(frozen=True)
class Report:
    """What was changed in ``model``; ``print(report)`` to read it, :meth:`undo` to take it back."""

    model: nn.Module
    entries: tuple[Entry, ...]
    dry_run: bool

    @property
    def replaced(self) -> tuple[Entry, ...]:
        """The modules that were changed, or with ``dry_run`` would be."""
        return tuple(entry for entry in self.entries if entry.after is not None)

    @property
    def skipped(self) -> tuple[Entry, ...]:
        """The recurrent modules that were left alone, each with its reason."""
        return tuple(entry for entry in self.entries if entry.after is None)

    def undo(self) -> None:
        """Give the modules that were changed their former class again; parameters keep the values they have now."""
        if self.dry_run:
            return
        for entry in self.replaced:
            if _own_class(entry.module) is entry.after:
                _change_class(entry.module, entry.before)

    def __str__(self) -> str:
        if not self.entries:
            return "no recurrent modules to replace"
        verb = "would replace" if self.dry_run else "replaced"
        lines = [f"{verb} {len(self.replaced)} of {len(self.entries)} recurrent modules"]
        return "\n".join(lines + [f"  {entry}" for entry in (*self.replaced, *self.skipped)])


def replace_rnn_modules(model: nn.Module, *, filter: Filter | None = None, dry_run: bool = False) -> Report:
    """Make every torch.nn LSTM, GRU, LSTMCell and GRUCell in ``model``, itself included, this package's, in place.

    Subclasses are left alone, since they may override what this package computes differently; so are modules whose ``forward``
    was replaced on the instance. The report lists them with the reason.

    Args:
        model: any module; also one that was trained, wrapped, parametrized or given to an optimizer.
        filter: ``filter(name, module) -> bool``, whether to replace a module; one with several names must be accepted under each.
        dry_run: only report what would be done.
    """
    return _convert(model, _OURS, filter, dry_run)


def restore_rnn_modules(model: nn.Module, *, filter: Filter | None = None, dry_run: bool = False) -> Report:
    """The reverse of :func:`replace_rnn_modules`: make this package's LSTM, GRU, LSTMCell and GRUCell torch.nn's, in place.

    For instance before pickling a model for somebody who does not have this package.
    """
    return _convert(model, _TORCHS, filter, dry_run)


def _convert(model: nn.Module, target_of: Mapping[type, type], filter: Filter | None, dry_run: bool) -> Report:
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    entries = []
    for module, own_names in names.items():
        before = _own_class(module)
        if before in target_of.values() or not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            continue
        reason = _objection(module, before, target_of)
        if reason is None and filter is not None and not all(filter(name, module) for name in own_names):
            reason = "excluded by the filter"
        after = target_of[before] if reason is None else None
        entries.append(Entry(tuple(own_names), module, before, after, reason))
        if after is not None and not dry_run:
            _change_class(module, after)
    return Report(model, tuple(entries), dry_run)


def _objection(module: nn.Module, own_class: type, target_of: Mapping[type, type]) -> str | None:
    """Why ``module`` cannot be replaced, or None."""
    if own_class not in target_of:
        for known in target_of:
            if isinstance(module, known):
                return f"a subclass of {_public_name(known)} may depend on what it overrides"
        return f"there is nothing to replace a {_public_name(own_class)} with"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if getattr(module, "proj_size", 0) and isinstance(module, nn.GRU):
        return "a GRU has no projection"
    for weight in module.parameters():
        if weight.dtype not in FLOAT_DTYPES:
            return f"its weights are {weight.dtype}"
    return None


def _own_class(module: nn.Module) -> type:
    return parametrize.type_before_parametrizations(module)


def _change_class(module: nn.Module, target: type) -> None:
    if parametrize.is_parametrized(module):
        # Its class was made for it: the original's subclass, with a property for each parametrized tensor.
        properties = {key: value for key, value in vars(type(module)).items() if key not in ("__dict__", "__weakref__")}
        target = type(f"Parametrized{target.__name__}", (target,), properties)
    for derived in ("_flat_weights", "_flat_weight_refs"):  # torch.nn's second list of parameters; ours are properties
        vars(module).pop(derived, None)
    module.__class__ = target
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()  # torch.nn's make their lists


def _public_name(cls: type) -> str:
    if cls in _TORCHS:
        return f"rnnkernels.{cls.__name__}"
    if cls.__module__ == "torch.nn.modules.rnn":
        return f"torch.nn.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"
