"""Compare attention operators: python scripts/compare.py --help."""

if __name__ == "__main__":
    from attnbench.cli.arguments import run_command
    from attnbench.cli.compare import PROG, main

    run_command(PROG, main)
