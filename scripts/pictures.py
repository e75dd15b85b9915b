"""Draw predictions, attention and bases of trained networks: python scripts/pictures.py --help."""

if __name__ == "__main__":
    from attnbench.cli.arguments import run_command
    from attnbench.cli.pictures import PROG, main

    run_command(PROG, main)
