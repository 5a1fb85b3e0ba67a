"""The driver for real guests: QEMU under libvirt, through libvirt's API alone."""
