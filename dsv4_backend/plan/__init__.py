"""What a deployment needs and could reach at best, from numbers alone: bytes, FLOPs, sequences that fit, roofline.

config ─ deepseek_v4 ─► ModelCost ─ estimate (mesh, device, format) ─► Plan ─ render ─► table or JSON; plot ─► PNG
         rivals (V3.2, dense GQA) ─► ModelCost ─┘        compare (published figures against the same roofline)
"""
