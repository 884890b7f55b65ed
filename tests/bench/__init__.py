"""Measures what the program costs, in turns with the programs it is compared to."""
