"""Inserted parts: what is not an update of one weight, such as adapters and prompts. They have no heads, so no gate."""
