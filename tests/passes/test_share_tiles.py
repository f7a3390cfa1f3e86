"""Windows on one tile: fused projections that an exporter split."""

import numpy as np
import pytest
from helpers.graphs import GraphBuilder, attribute, compile_and_compare
from helpers.weights import tiled_array

INPUTS = 64


def projections(rows, tiles, order=None, *, scale=0.3, spread=False):
    """MatMuls of one activation whose weights are row windows on one tiled weight."""
    total = sum(rows)
    length = total * INPUTS // tiles
    if spread:
        scale = np.repeat(np.linspace(0.5, 1, tiles), length)
    fused = tiled_array((total, INPUTS), length, scale, seed=7)
    starts = np.cumsum([0, *rows[:-1]])
    graph = GraphBuilder()
    x = graph.input("x", [2, 5, INPUTS])
    for index in order or range(len(rows)):
        part = fused[starts[index] : starts[index] + rows[index]]
        graph.node("MatMul", [x, graph.weight(f"w{index}", part.T)], f"y{index}")
    outputs = [f"y{index}" for index in range(len(rows))]
    return graph.model(*outputs, rank=3), length


def tile_bytes(compiled):
    return sum(
        len(each.raw_data) for each in compiled.model.graph.initializer if each.data_type == 2
    )


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0), (1, 0, 2)])
def test_windows_longer_than_the_tile(tmp_path, order, spread):
    model, length = projections([64, 64, 64], 4, order, spread=spread)
    compiled = compile_and_compare(model, tmp_path, lowered=3)
    assert tile_bytes(compiled) == length // 8
    assert {attribute(node, "tile_length") for node in compiled.tiled} == {length}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0), (1, 0, 2)])
def test_windows_shorter_than_the_tile(tmp_path, order):
    model, length = projections([64, 64, 64], 2, order)
    compiled = compile_and_compare(model, tmp_path, lowered=3)
    assert tile_bytes(compiled) == length // 8


@pytest.mark.parametrize("tiles", [2, 4, 8])
def test_grouped_queries_have_unequal_windows(tmp_path, tiles):
    model, length = projections([128, 32, 32], tiles)
    compiled = compile_and_compare(model, tmp_path, lowered=3)
    assert tile_bytes(compiled) == length // 8


def test_offsets_that_are_no_multiple_of_eight(tmp_path):
    model, length = projections([31, 33, 35], 3)
    compiled = compile_and_compare(model, tmp_path, lowered=3)
    assert tile_bytes(compiled) == -(-length // 8)


def test_layers_that_share_nothing_keep_their_tiles(tmp_path):
    graph = GraphBuilder()
    x = graph.input("x", [5, INPUTS])
    for index in range(3):
        weight = tiled_array((64, INPUTS), 1024, seed=index)
        graph.node("Gemm", [x, graph.weight(f"w{index}", weight)], f"y{index}", transB=1)
    compiled = compile_and_compare(graph.model("y0", "y1", "y2", rank=2), tmp_path, lowered=3)
    assert tile_bytes(compiled) == 3 * 1024 // 8
    assert [layer.tiles for layer in compiled.report.lowered] == [4.0] * 3


def test_short_tiles_meet_by_chance_and_are_left(tmp_path):
    graph = GraphBuilder()
    x = graph.input("x", [5, INPUTS])
    for index, tile in enumerate(([1, -1, 1, 1], [1, 1, -1, 1, -1, 1, 1, 1])):
        weight = np.resize(np.float32(tile), (64, INPUTS))
        graph.node("Gemm", [x, graph.weight(f"w{index}", weight)], f"y{index}", transB=1)
    compiled = compile_and_compare(graph.model("y0", "y1", rank=2), tmp_path, lowered=2)
    assert [layer.tile_length for layer in compiled.report.lowered] == [4, 8]
