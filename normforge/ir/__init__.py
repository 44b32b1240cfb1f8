"""What a layer is: types, operations, graphs, three text forms, the verifier, the reference evaluator.

Importing this package gives graphs their text forms.
"""

from normforge.ir.evaluate import evaluate
from normforge.ir.forms import dump, json_form, printer
from normforge.ir.graph import READERS, WRITERS, Graph
from normforge.ir.layers import layers, parse
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.verify import verify

WRITERS.update(text=printer.text, dump=dump.dump, json=json_form.to_json)
READERS.update(dump=dump.load, json=json_form.from_json)

__all__ = ["Graph", "Node", "Op", "evaluate", "layers", "parse", "verify"]
