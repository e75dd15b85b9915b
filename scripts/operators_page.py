"""Write docs/operators.md from the registry: python scripts/operators_page.py --help."""

if __name__ == "__main__":
    from attnbench.cli.arguments import run_command
    from attnbench.cli.operators_page import PROG, main

    run_command(PROG, main)
