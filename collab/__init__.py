"""Train language models to collaborate: rewards from simulated futures (CollabLLM, arXiv 2502.00640)."""

__version__ = "0.1.0"
