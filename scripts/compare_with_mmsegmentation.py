"""Compare with an installed mmsegmentation: python scripts/compare_with_mmsegmentation.py --help."""

if __name__ == "__main__":
    from attnbench.cli.arguments import run_command
    from attnbench.cli.compare_with_mmsegmentation import PROG, main

    run_command(PROG, main)
