"""What was seen while the program ran: records of regions, the TraceGraph that merges them, the choice of the region."""
