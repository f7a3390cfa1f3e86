"""Windows on one tile: a fused projection that was split shares its tile again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import permutations

import numpy as np
import onnx_ir as ir

from tbn_compile import operators
from tbn_compile.detection import find_window, smallest_period
from tbn_compile.passes.onnx.tiled_nodes import (
    Initializers,
    constant_tiled_nodes,
    read_weight,
    write_weight,
)
from tbn_compile.tile import Signs, TiledBinaryWeight, pack_bits, unpack_bits

_SMALLEST_TILE = 64
_MOST_PERMUTED = 3
_MOST_PARTS = 8


class ShareTilesPass(ir.passes.InPlacePass):
    """Let layers whose signs are windows on one repeated tile refer to a single copy of it.

    Only layers that read one activation (query, key and value) are compared. Either their signs
    repeat once they are joined in some order, or one layer's signs stand in another's tile. Tiles
    of fewer than 64 signs are left: they meet by chance.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Share tiles among the nodes of each activation."""
        initializers = Initializers(model)
        modified = False
        for nodes in _siblings(constant_tiled_nodes(model)):
            weights = [read_weight(node) for node in nodes]
            shared = _joined(weights) or _windows(weights)
            for node, old, new in zip(nodes, weights, shared, strict=True):
                if new is not old:
                    write_weight(node, new, initializers)
                    modified = True
        return ir.passes.PassResult(model, modified)


def _joined(weights: list[TiledBinaryWeight]) -> list[TiledBinaryWeight] | None:
    """All weights on the tile of their concatenation; None if that is no shorter."""
    parts = [weight.signs() for weight in weights]
    places = range(len(weights))
    orders = permutations(places) if len(weights) <= _MOST_PERMUTED else [tuple(places)]
    joined = ((order, np.concatenate([parts[place] for place in order])) for order in orders)
    length, order, signs = min(
        ((smallest_period(signs), order, signs) for order, signs in joined),
        key=lambda candidate: candidate[:2],
    )
    if length >= sum({weight.bits.tobytes(): weight.tile_length for weight in weights}.values()):
        return None
    starts = np.cumsum([0, *(parts[place].size for place in order)])
    offsets = dict(zip(order, starts.tolist(), strict=False))
    return [_placed(weights[place], signs[:length], offsets[place] % length) for place in places]


def _windows(weights: list[TiledBinaryWeight]) -> list[TiledBinaryWeight]:
    """Each weight on the longest tile of the list that holds its signs, or as it was."""
    placed = list(weights)
    hosts: list[Signs] = []
    for index in sorted(range(len(weights)), key=lambda i: -weights[i].tile_length):
        weight = weights[index]
        if min(weight.tile_length, weight.size) < _SMALLEST_TILE:
            continue
        for tile in hosts:
            offset = find_window(weight, tile)
            if offset is not None:
                placed[index] = _placed(weight, tile, offset)
                break
        else:
            hosts.append(unpack_bits(weight.bits, weight.tile_length))
    return placed


def _siblings(nodes: Iterable[ir.Node]) -> list[list[ir.Node]]:
    """Gemms that read the same activation, in graph order: the parts of a fused projection."""
    readers: dict[ir.Value | None, list[ir.Node]] = defaultdict(list)
    for node in nodes:
        if node.op_type == operators.GEMM and node.attributes.get_int("transB") != 0:
            readers[node.inputs[0]].append(node)
    return [group for group in readers.values() if 1 < len(group) <= _MOST_PARTS]


def _placed(weight: TiledBinaryWeight, tile: Signs, offset: int) -> TiledBinaryWeight:
    """The same weight as a window on another tile; scales keep their own cycle."""
    bits = pack_bits(tile)
    if (weight.tile_length, weight.offset) == (tile.size, offset) and np.array_equal(
        weight.bits, bits
    ):
        return weight
    return TiledBinaryWeight(
        bits=bits,
        shape=weight.shape,
        tile_length=tile.size,
        scale=weight.scale,
        scale_length=weight.scale_length,
        offset=offset,
        scale_offset=weight.scale_offset,
        layout=weight.layout,
    )
