"""The last layer, computed for the rows that are read and no others.

A score is read from one row of its sequence. All layers but the last need the other rows too, for
the next layer's keys; the last one needs them for its own keys only. Outside of attention a layer
works row by row, so it is run twice: on all rows until its attention has their keys and values, and
then, with those, on the rows that are read. That saves what follows the keys in one layer: its
attention, its output projection and its feed-forward part, for nearly all rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from reward_model.packing import ROW_MULTIPLE

_HOOKED = "_sumzero_reads_rows"


@dataclass(frozen=True, eq=False)
class Keys:
    """Of all packed rows, in the last layer: [1, key heads, T, D] each."""

    key: Tensor
    value: Tensor


@dataclass(eq=False)
class Reading:
    """Which rows are wanted of a forward, and what the last layer is about.

    ``rows_N`` are the wanted rows. ``wants_keys``: in the last layer's first run, which ends when
    there are keys and values. ``keys``: in its second run, these. ``done`` says that the forward
    gave :attr:`padded_rows`.
    """

    rows_N: Tensor
    wants_keys: bool = False
    keys: Keys | None = None
    done: bool = False

    @property
    def padded_rows(self) -> Tensor:
        """The last row repeated, up to as many as products need to be alike for every row."""
        filler = self.rows_N[-1:].expand(-len(self.rows_N) % ROW_MULTIPLE)
        return torch.cat([self.rows_N, filler])


class KeysTaken(Exception):  # noqa: N818 - no error
    """Ends the first run of the last layer: it carries what that was for."""

    def __init__(self, keys: Keys) -> None:
        super().__init__("keys of the last layer")
        self.keys = keys


def read_rows_in_last_layer(model: nn.Module) -> None:
    """Let the last layer of a backbone heed ``reading``; in place, and once however often asked."""
    layer = last_layer(model)
    if layer is not None and not hasattr(layer, _HOOKED):
        setattr(layer, _HOOKED, True)
        layer.register_forward_pre_hook(_take_keys, with_kwargs=True)


def last_layer(model: nn.Module) -> nn.Module | None:
    """None where a model does not keep its layers in one list, as those that share weights do."""
    count = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module[-1]
    return None


def _take_keys(
    layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    reading: Reading | None = options.get("reading")
    if reading is None or torch.compiler.is_compiling():
        return None
    try:
        layer.forward(*arguments, **options | {"reading": replace(reading, wants_keys=True)})
    except KeysTaken as taken:
        keys = taken.keys
    else:
        return None
    reading.done = True
    rows_R, count = reading.padded_rows, keys.key.shape[2]
    chosen = {"reading": replace(reading, keys=keys)}
    return (
        tuple(_chosen(argument, rows_R, count) for argument in arguments),
        {name: _chosen(option, rows_R, count) for name, option in options.items()} | chosen,
    )


def _chosen(value: Any, rows_R: Tensor, count: int) -> Any:
    """The rows of everything that has one for each of all rows: states, positions, rotations."""
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[:2] == (1, count):
        return value.index_select(1, rows_R)
    if isinstance(value, tuple | list):
        return type(value)(_chosen(one, rows_R, count) for one in value)
    if isinstance(value, Mapping):
        return {name: _chosen(one, rows_R, count) for name, one in value.items()}
    return value
