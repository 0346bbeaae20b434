"""spar_lite: SPaR (self-play with tree search, arXiv 2412.11605) on one GPU, with LoRA."""

__version__ = "0.1.0"
