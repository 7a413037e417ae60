"""Co-execution itself: slots, channels, the skeleton, the graph runner, fallback."""
