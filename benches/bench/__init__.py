"""Measures keepmark beside other programs, on disks and virtual machines that it makes itself."""
