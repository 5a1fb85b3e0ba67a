"""vpsd: a VPS cloud that anyone can run on their own machines."""

__version__ = "0.1.0"
