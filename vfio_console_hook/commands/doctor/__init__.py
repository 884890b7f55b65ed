"""doctor: checks of the host, the installation and the VMs, one module an area."""
