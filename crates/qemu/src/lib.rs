//! One QEMU: QMP, guest agent, bitmaps, frozen points and exports, for running VMs and, through qemu-storage-daemon, powered-off images.
