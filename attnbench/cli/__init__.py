"""Command lines: arguments in, calls to the harness, one-line errors with exit code 2."""
