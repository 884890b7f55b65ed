"""Writing a machine down: all that plan, doctor and status read of it, and no names."""
