"""What a user does with folders and models: resize, verify, suggest, inspect, the demo."""
