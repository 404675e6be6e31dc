"""What a resize does to every tensor, decided from configs before a weight is read."""
