//! What a QEMU can do, by its version. Pure.
//!
//! Its own description (`query-qmp-schema`) would tell too, but QEMU needs 50 ms to print it, in the thread that serves the guest.
//! Where somebody brought a feature back into an older QEMU, we do without it.

use crate::qmp::wire::Version;

/// What a QEMU can do, as far as it matters here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Frozen points by copy-before-write filters that break the backup rather than the guest, with a time-out (QEMU >= 7.1),
    /// and reading what they keep (7.0).
    pub filters: bool,
    /// Staying when the guest powers down (`set-action`, QEMU >= 6.0).
    pub set_action: bool,
    /// Exports on their own instead of `nbd-server-add` (QEMU >= 5.2).
    pub block_export: bool,
}

impl Capabilities {
    /// Those of a version.
    #[must_use]
    pub fn of(version: Version) -> Self {
        let since = |major, minor| (version.major, version.minor) >= (major, minor);
        Self { filters: since(7, 1), set_action: since(6, 0), block_export: since(5, 2) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_come_with_their_versions() {
        let of = |major, minor| {
            let found = Capabilities::of(Version { major, minor, micro: 0 });
            (found.block_export, found.set_action, found.filters)
        };
        assert_eq!(of(5, 1), (false, false, false));
        assert_eq!(of(5, 2), (true, false, false));
        assert_eq!(of(7, 0), (true, true, false));
        assert_eq!(of(7, 1), (true, true, true));
        assert_eq!(of(10, 0), (true, true, true));
        assert_eq!(Capabilities::of(Version::default()), Capabilities::default());
    }
}
