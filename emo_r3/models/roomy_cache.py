"""A cache with room for what is to come: transformers' own copies all it has for each token."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer

# Columns by which a cache grows when it is full.
_ROOM = 64


def with_room(cache: Any) -> Any:
    """Gives the layers of a cache room. What reads keys and values off it sees no difference."""
    cache.layers = [RoomyLayer(layer) for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """Keys and values that are written where there is room: a `DynamicLayer` copies all it has for each token."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        vars(self).update(vars(layer))
        self.plain = layer
        self.whole: list[Any] = [layer.keys, layer.values]

    def __copy__(self) -> Any:
        """A layer without room: two that write into the same room would write over each other."""
        layer = copy.copy(self.plain)
        layer.keys, layer.values = self.keys, self.values
        return layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the first rows, as many as are given, with these at their end."""
        rows, _, new, _ = key_states.shape
        length = self.get_seq_length()
        if length + new > self.whole[0].shape[-2]:
            self.whole = [pad(whole, (0, 0, 0, max(new, _ROOM))) for whole in self.whole]
        for whole, states in zip(self.whole, (key_states, value_states), strict=True):
            whole[:rows, :, length : length + new] = states
        self.keys, self.values = (whole[:rows, :, : length + new] for whole in self.whole)
        return self.keys, self.values

    def swap(self, one: int, other: int) -> None:
        """Lets two rows change places."""
        for whole in self.whole:
            whole[[one, other]] = whole[[other, one]]

    def gathered(self, rows: Tensor, columns: Tensor) -> Any:
        """The layer of which this was made, with these rows and, of shape `(rows, length)`, their columns."""
        self.plain.keys, self.plain.values = (
            whole[rows[:, None].to(whole.device), :, columns.to(whole.device)].transpose(1, 2) for whole in self.whole
        )
        return self.plain
