"""What `--profile` does: watch a run for a while, and tell afterwards where its steps' time went."""
