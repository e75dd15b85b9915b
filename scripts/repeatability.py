"""Hold two runs of one comparison against each other: python scripts/repeatability.py --help."""

if __name__ == "__main__":
    from attnbench.cli.arguments import run_command
    from attnbench.cli.repeatability import PROG, main

    run_command(PROG, main)
