"""Train a small DeepSeek-V4 on packed conversations, on a CPU, and export it as a checkpoint.

config ─► weights ─► batch ─► model (attention, experts, hyper) ─► loss ─► optimiser ─► loop ─► state, curves ─► export
"""
