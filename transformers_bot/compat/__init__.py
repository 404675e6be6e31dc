"""What depends on how transformers, torch and the system work inside: building in threads, muting, memory."""
