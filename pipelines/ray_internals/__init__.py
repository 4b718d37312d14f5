"""Every use of internals of Ray. Tests fail with their names where another release lacks them."""
