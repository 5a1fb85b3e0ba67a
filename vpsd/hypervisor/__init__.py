"""Where guests run: the protocol, its drivers and the probe."""
