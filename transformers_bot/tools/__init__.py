"""The tools for users: resize, verify, suggest, inspect, check an adapter, the demo."""
