"""What a resize did to every tensor: measured while it runs, kept as data, shown as text and figures."""
