"""Put initializers in the order of their first use, so that equal models become equal bytes."""

from __future__ import annotations

import onnx_ir as ir


class OrderInitializersPass(ir.passes.InPlacePass):
    """Sort each graph's initializers by the first node that reads them; unread ones come last."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Sort in the graph and its subgraphs."""
        used: dict[ir.Value, None] = {}
        for node in model.graph.all_nodes():
            used.update(dict.fromkeys(value for value in node.inputs if value is not None))
        place = {value: index for index, value in enumerate(used)}
        modified = False
        for graph in model.graphs():
            present = list(graph.initializers.values())
            ordered = sorted(present, key=lambda value: place.get(value, len(place)))
            if ordered == present:
                continue
            graph.initializers.clear()
            for value in ordered:
                graph.register_initializer(value)
            modified = True
        return ir.passes.PassResult(model, modified)
