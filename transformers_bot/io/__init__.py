"""Files: reading a source safely, writing folders whole or not at all, what stands beside the weights."""
