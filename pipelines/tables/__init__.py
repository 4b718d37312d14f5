"""The comparison table, its statistics and its formats."""
