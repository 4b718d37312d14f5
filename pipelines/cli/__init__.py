"""The command line: options, messages, exit codes, progress."""
