"""Segment images with a trained checkpoint: python scripts/predict.py --help."""

if __name__ == "__main__":
    from attnbench.cli.arguments import run_command
    from attnbench.cli.predict import PROG, main

    run_command(PROG, main)
