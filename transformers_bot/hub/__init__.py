"""Where a model comes from and where it goes: its record, its card, the push."""
