"""A finished run used: read back, exported, published checkpoints imported."""
