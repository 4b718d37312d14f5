"""Containers and streams, read without decoding them."""
