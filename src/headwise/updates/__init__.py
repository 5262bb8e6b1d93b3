"""Updates of the attention projections: sites, low-rank updates per head, gates, masks. The two papers in code."""
