"""What the program costs, measured side by side with what it is compared to."""
