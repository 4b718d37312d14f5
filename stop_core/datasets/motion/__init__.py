"""The embedded demonstration sets."""
