"""Train one network, in one process or in many: python scripts/train.py --help."""

if __name__ == "__main__":
    from attnbench.cli.arguments import run_command
    from attnbench.cli.train import PROG, main

    run_command(PROG, main)
