"""The harness: builds, checks, measures, trains and reports attention operators."""

import os

# cuBLAS reads it when it starts; without it, matrix products on CUDA need not have the same bits twice
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

__version__ = "0.1.0"
