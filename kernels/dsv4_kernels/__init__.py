"""Operators of DeepSeek-V4 behind one table. Knows nothing of the rest of the project."""
