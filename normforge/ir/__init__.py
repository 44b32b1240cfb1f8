"""What a layer is: types, operations, graphs, three text forms, the verifier, the reference evaluator."""

from normforge.ir.evaluate import evaluate
from normforge.ir.graph import Graph
from normforge.ir.layers import layers, parse
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.verify import verify

__all__ = ["Graph", "Node", "Op", "evaluate", "layers", "parse", "verify"]
