"""What was seen while the program ran: records, the TraceGraph, the choice of the region."""
