"""What a call asks for: its keywords, the source's class, the target's config."""
