"""status: what VMs hold and what was last heard of each, in words, as JSON and as metrics."""
