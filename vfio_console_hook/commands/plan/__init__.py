"""plan: what would happen if a VM started now, as a value, as text and as a drawing."""
