"""Download, convert and check a dataset: python scripts/prepare_data.py --help."""

if __name__ == "__main__":
    from attnbench.cli.arguments import run_command
    from attnbench.cli.prepare_data import KEPT, PROG, main

    run_command(PROG, main, KEPT)
