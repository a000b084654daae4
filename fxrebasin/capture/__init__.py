"""Capture: an `nn.Module` becomes a `Program`, a functional FX graph of ATen operations.

The graph comes from `torch.export` (non-strict, on fake tensors: nothing is computed, and weights take no
memory), then `run_decompositions({})`, which only removes in-place writes: composite operations stay as
they are. Where export refuses a module, as it does when the module branches on the values of its tensors,
what the module does with the example inputs is recorded instead.

To be read in this order:

    source        what a placeholder of the graph stands for
    leaves        the tensors within arguments and results, by name
    interpreter   runs a graph on real tensors
    node          nodes of a graph with the types that they have
    program       what comes out: Program, Output
    memory        where tensors lie, and how one that lies within another is made of it
    tracing_copy  a copy of the module that may be traced without consequences
    names         what the module's tensors are called in its `state_dict()`
    reads         numbers that leave the graph
    sources       what the placeholders and constants of an exported graph are, and what forward writes to
    exported      an ExportedProgram becomes a Program
    recorder      writes down what a module does with real tensors
    effort        how much work a graph is
    agreement     graph and module beside each other at other numbers
    refusal       one line on why there is no graph
    front         `capture` itself
    join          several runs of one module as one program
"""
from .agreement import culprits
from .effort import multiplications
from .front import capture
from .interpreter import default_dtype, value_of
from .join import joined, path_in_run
from .leaves import arguments, leaves_of
from .node import argument, int_at, node_at, nodes_at, op_of, tensor_of
from .program import Output, Program
from .source import Source

__all__ = ["Output", "Program", "Source", "argument", "arguments", "capture", "culprits", "default_dtype", "int_at", "joined",
           "leaves_of", "multiplications", "node_at", "nodes_at", "op_of", "path_in_run", "tensor_of", "value_of"]
