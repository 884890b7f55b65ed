"""status: what VMs hold and their last events, as text, as JSON and as metrics."""
