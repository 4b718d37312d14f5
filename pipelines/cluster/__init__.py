"""Starting and joining Ray, and its resources."""
