"""Metrics of recognition and retrieval, and statistics over them."""
