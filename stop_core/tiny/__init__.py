"""Tiny CLIPs that ship with this package, and how they are loaded."""
