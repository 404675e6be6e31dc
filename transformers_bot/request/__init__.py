"""What a call asks for, read and checked once, and the class of its source's weights."""
