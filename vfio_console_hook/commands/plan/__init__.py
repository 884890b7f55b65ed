"""plan: what would happen if a VM started now, as a value, in words and as a drawing."""
