"""What --objective trains with, one file each; base.py says what an objective is, registry.py lists them."""
