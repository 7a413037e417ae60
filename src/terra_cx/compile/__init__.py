"""From the TraceGraph to executable blocks: cutting, lowering, ordering of effects."""
