"""DeepSeek-V4 runtime behind NVIDIA Triton Inference Server."""

__version__ = "0.1.0"
