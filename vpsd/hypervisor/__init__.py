"""Hypervisors: the protocol, its drivers and the KVM probe."""
