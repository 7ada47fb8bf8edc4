//! The kinds of events: how often chance draws each, and its words.

/// Kinds of events, each with its weight in a history and the words for it.
macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $weight:literal, $words:literal;)*) => {
        /// What happens.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum EventKind {
            $($(#[$doc])* $name,)*
        }

        /// Every kind with its weight.
        pub const EVENTS: &[(EventKind, u32)] = &[$((EventKind::$name, $weight)),*];

        impl EventKind {
            /// The event in words.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)*
                }
            }
        }
    };
}

events! {
    /// Guest.
    Write = 300, "the guest writes";
    /// Guest.
    WriteZeros = 25, "the guest writes zeros";
    /// Guest.
    Discard = 25, "the guest discards";
    /// User.
    PowerOn = 60, "the VM is started";
    /// User.
    PowerOff = 14, "the VM is shut down";
    /// Accident.
    KillQemu = 10, "QEMU is killed";
    /// User.
    Pause = 4, "the user pauses the VM";
    /// User.
    Resume = 8, "the user resumes the VM";
    /// User.
    Resize = 8, "the disk is resized";
    /// User.
    ShrinkAndGrow = 8, "the disk is shrunk and grown back";
    /// User.
    Snapshot = 8, "an external snapshot is taken";
    /// libvirt.
    ManagedSnapshot = 6, "libvirt takes an external snapshot, with bitmaps";
    /// User.
    Commit = 8, "the active image is committed into its backing image";
    /// libvirt.
    ManagedCommit = 5, "libvirt commits the active image, with bitmaps";
    /// User.
    Stream = 4, "the backing images are streamed into the active one";
    /// User.
    Mirror = 3, "the disk is mirrored to another file";
    /// User.
    Convert = 2, "qemu-img convert writes the image anew";
    /// User.
    ConvertWithBitmaps = 2, "qemu-img convert --bitmaps writes the image anew";
    /// Host.
    Copy = 10, "the host copies the image";
    /// Host.
    Rollback = 8, "the image is rolled back to an older copy";
    /// User.
    Clone = 2, "the VM is cloned, identity and all";
    /// User.
    EditFile = 4, "a tool that knows no bitmaps writes into the image";
    /// User.
    PunchFile = 3, "a tool that knows no bitmaps makes holes in the image";
    /// User.
    EditBacking = 2, "a backing image is changed under the active one";
    /// User.
    DropBitmaps = 3, "qemu-img amend drops all bitmaps";
    /// Another tool.
    AddForeign = 5, "another tool starts a bitmap of its own";
    /// Another tool.
    RemoveOurs = 3, "another tool removes a bitmap of ours";
    /// Another tool.
    DisableOurs = 6, "another tool disables a bitmap of ours";
    /// Another tool.
    EnableOurs = 3, "another tool enables a bitmap of ours";
    /// Another tool.
    ClearOurs = 2, "another tool clears a bitmap of ours";
    /// Another tool.
    HoldOurs = 5, "another job holds a bitmap of ours";
    /// Another tool.
    ReleaseOurs = 6, "the other job lets go of the bitmaps";
    /// User.
    Detach = 3, "the disk is unplugged";
    /// User.
    Attach = 8, "the disk is plugged in";
    /// User.
    Replace = 3, "the disk is replaced by another, new one";
    /// User.
    Swap = 3, "two disks change places";
    /// User.
    CopyOverSibling = 1, "the image is overwritten by a copy of another disk of the VM";
    /// User.
    Restore = 5, "an old backup is written back into the running VM";
    /// User.
    DeleteBackup = 14, "a backup is deleted";
    /// Host.
    CutStore = 8, "the store's host loses its power";
    /// Host.
    PowerCut = 6, "the VM's host loses its power";
    /// Host.
    ClockBack = 2, "the clock is set back";
    // What others do is laid into histories by itself: with a weight it would change what older seeds mean.
    /// Somebody.
    Cont = 0, "somebody lets the VM run";
    /// Somebody.
    Reset = 0, "somebody resets the VM";
    /// User.
    BeginMirror = 0, "somebody begins to mirror the disk";
    /// User.
    Pivot = 0, "the mirror ends, and the disk is in its file";
    /// User.
    SnapshotMeanwhile = 0, "an external snapshot is taken, through the device or below the filter";
    /// User.
    Unplug = 0, "the disk is unplugged";
    /// User.
    PlugOther = 0, "another disk is plugged in its place";
    /// User.
    Preallocate = 0, "the image gets space for all that has none";
    /// User.
    CutAndPreallocate = 0, "the disk is shrunk and grown back with preallocated space";
    /// User.
    ConvertOver = 0, "qemu-img convert --bitmaps writes the active image over the lowest one";
    /// User.
    ConvertOlder = 0, "qemu-img convert --bitmaps writes an older state of the image over it";
    /// libvirt.
    SnapshotAlike = 0, "libvirt takes an external snapshot whose file is called like the first one's";
    /// User.
    Remake = 0, "the image is deleted and made anew";
    /// Another tool.
    MergeIntoOurs = 0, "another tool merges a bitmap into one of ours";
    /// Another tool.
    RemakeOurs = 0, "another tool removes a bitmap of ours and makes one of its name";
    /// Host.
    ClockAhead = 0, "the clock jumps ahead, by years perhaps";
    /// Host.
    ClockBehind = 0, "the clock jumps back, by years perhaps";
    /// User.
    LinkedClone = 0, "another VM is made with images above this one's";
    /// User.
    CopyStore = 0, "the store's backups are copied into another store";
    /// User.
    TwinStore = 0, "the store is copied with its id";
    /// User.
    Push = 0, "the store keeps zeros that were written, as a pushed image does";
    /// Another keepmark.
    OtherKeepmark = 0, "another keepmark comes";
    /// Another program.
    ServeOthers = 0, "another program serves exports";
    /// Another program.
    EndServing = 0, "the other program's exports end";
    /// User.
    Agent = 0, "the guest gets an agent";
    /// Another program.
    FreezeByOthers = 0, "another program freezes the guest's file systems";
    /// Another program.
    ThawByOthers = 0, "another program thaws the guest's file systems";
}

impl EventKind {
    /// Whether a run of keepmark has to succeed all the same.
    #[must_use]
    pub fn is_harmless(self) -> bool {
        matches!(self, Self::Write | Self::WriteZeros | Self::Discard | Self::Reset | Self::OtherKeepmark | Self::Agent | Self::Push)
    }
}
