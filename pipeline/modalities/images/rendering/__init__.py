"""Pixels of a view: cropping on the CPU or a device, then integer operations shared by both."""
