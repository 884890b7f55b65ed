"""Frees a GPU from the host's console drivers before a VM takes it, and gives the console back."""

__version__ = "0.2.0"
