"""The harness: builds, checks, measures, trains and reports attention operators."""

__version__ = "0.1.0"
