"""The TraceGraph as people read it: a listing with source lines, and Graphviz dot."""

from __future__ import annotations

import json
import linecache
import os
from collections.abc import Iterable
from typing import Any, Protocol

__all__ = ["HasGraph", "dot", "text"]

_DTYPES = {
    1: "f32",
    2: "f64",
    3: "i32",
    4: "u8",
    6: "i8",
    7: "str",
    9: "i64",
    10: "bool",
    14: "bf16",
    19: "f16",
    20: "resource",
}


class HasGraph(Protocol):
    """An active anchor, as far as this page needs it."""

    line: str
    graph: Any


def _spec(spec: Any) -> str:
    shape = "?" if spec.shape is None else "x".join(map(str, spec.shape)) or "scalar"
    return f"{_DTYPES.get(spec.dtype, spec.dtype)}[{shape}]"


def _argument(rule: Any) -> str:
    name: str = rule.need.name.lower()
    if name == "local":
        return f"%{rule.node.id}" + (f".{rule.out}" if rule.out else "")
    if name == "const":
        return f"{rule.value!r:.24}"
    return {
        "shared": "feed",
        "external": "feed",
        "tensor": "any",
        "known": "guarded",
        "resource": "variable",
        "captured": "const",
    }.get(name, name)


def _node(node: Any) -> str:
    call = node.call
    if call.form == "G":
        outputs = f"{sum(r is not None for r in node.results)} gradients by {len(call.inner)} ops"
    else:
        outputs = ", ".join(_spec(spec) for spec in call.outputs) or "-"
    arguments = ", ".join(_argument(rule) for rule in node.rules)
    return f"%{node.id} = {call.op}({arguments}) -> {outputs}"


def text(anchor: HasGraph) -> str:
    """The graph of one anchor: nodes in order of discovery under their source lines, with branches, joins and cuts."""
    graph = anchor.graph
    name, _, number = anchor.line.rpartition(":")
    lines = [
        f"region at {os.path.basename(name)}:{number}: {len(graph)} nodes, {graph.branch_nodes()} branches, "
        f"{graph.traces} traces" + (f", rolled loops {sorted(graph.rolled)}" if graph.rolled else "")
    ]
    joins: dict[int, int] = {}
    for node in graph:
        for following in node.succ:
            joins[following.id] = joins.get(following.id, 0) + 1
    last = None
    for node in graph:
        if node.line != last:
            last = node.line
            file, _, at = last.rpartition(":")
            lines.append(
                f"  {os.path.basename(file)}:{at}: {linecache.getline(file, int(at)).strip() if at.isdigit() else ''}"
            )
        marks = []
        if joins.get(node.id, 0) > 1:
            marks.append("join")
        if len(node.succ) > 1 or (node.succ and node.ends):
            ways = [f"%{n.id} x{c}" for n, c in node.succ.items()] + (
                [f"end x{node.ends}"] if node.ends else []
            )
            marks.append("branch: " + ", ".join(ways))
        back = [n.id for n in node.succ if n.id <= node.id]
        if back:
            marks.append(f"back edge to %{back[0]}")
        if node.cut_after:
            marks.append(f"cut: {node.cut_after}")
        lines.append(f"    {_node(node)}" + (f"   [{'; '.join(marks)}]" if marks else ""))
    return "\n".join(lines)


def dot(anchors: Iterable[HasGraph]) -> str:
    """The graphs as one Graphviz digraph, a cluster per anchor; edge labels count how often a way was taken."""
    lines = ["digraph terra {", '  node [shape=box, fontname="monospace"];']
    for index, anchor in enumerate(anchors):
        lines.append(f"  subgraph cluster_{index} {{ label={json.dumps(os.path.basename(anchor.line))};")
        lines.append(f'    a{index}_start [label="region", shape=circle];')
        for node in anchor.graph:
            label = f"{_node(node)}\\l{os.path.basename(node.line)}\\l"
            lines.append(f'    a{index}_{node.id} [label="{label.replace(chr(34), chr(39))}"];')
        for node, count in anchor.graph.root.succ.items():
            lines.append(f'    a{index}_start -> a{index}_{node.id} [label="{count}"];')
        for node in anchor.graph:
            for following, count in node.succ.items():
                lines.append(f'    a{index}_{node.id} -> a{index}_{following.id} [label="{count}"];')
        lines.append("  }")
    lines.append("}")
    return "\n".join(lines)
