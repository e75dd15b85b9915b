"""Draw the live memory of operators over one pass: python scripts/memory_curve.py --help."""

if __name__ == "__main__":
    from attnbench.cli.arguments import run_command
    from attnbench.cli.memory_curve import PROG, main

    run_command(PROG, main)
