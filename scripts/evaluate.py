"""Score and time a checkpoint: python scripts/evaluate.py --help."""

if __name__ == "__main__":
    from attnbench.cli.arguments import run_command
    from attnbench.cli.evaluate import PROG, main

    run_command(PROG, main)
