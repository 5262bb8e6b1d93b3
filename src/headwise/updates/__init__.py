"""Updates of the attention projections: sites, low-rank updates per head, gates, masks. The two papers in code.

A training step passes `qkv`, `adapted`, `lowrank` and `fused`, in this order. A gate says how many heads go and when
(`gate`); `heads` scores and chooses them, `masking` does so during training.
"""
