"""The command ``stillhouse``."""
