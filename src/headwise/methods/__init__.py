"""Methods: one file each, built by Hydra from conf/method/<name>.yaml; files that begin with ``_`` are shared parts.

HS-LoRA is `hs_lora` (per-head updates, the two phases, the controls of equal size and length). Heart-LoRA has no file:
conf/method/heart_lora.yaml is `bi_lora` with a gate, and gates are `headwise.updates.gate`.
"""
