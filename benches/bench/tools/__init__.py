"""The programs that are compared: each knows how to make its full and incremental backups and to restore."""

from . import keepmark, nbdcopy, push, qemu_img, qmpbackup, restic, virtnbdbackup

KINDS = {
    kind.name: kind
    for kind in (
        nbdcopy.ToFile, nbdcopy.ToNull, keepmark.Keepmark, push.KeepmarkPush, push.ByHand, virtnbdbackup.Virtnbdbackup, qmpbackup.Qmpbackup,
        restic.Restic, qemu_img.Convert, qemu_img.ConvertCompressed,
    )
}
