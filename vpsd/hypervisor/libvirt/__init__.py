"""The driver for real guests: QEMU under libvirt, using only libvirt's API."""
