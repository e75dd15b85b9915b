"""Write the report of recorded runs again: python scripts/report.py --help."""

if __name__ == "__main__":
    from attnbench.cli.arguments import run_command
    from attnbench.cli.report import PROG, main

    run_command(PROG, main)
