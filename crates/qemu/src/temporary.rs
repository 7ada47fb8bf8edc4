//! Names of what keepmark puts into QEMU for the time of one run; all begin with the prefix by which a later run finds them.

use keepmark_model::names::TEMPORARY_PREFIX;

// QEMU allows node names of 31 bytes; prefix, kind and number take 19 of them at most.
const RUN_BYTES_MAX: usize = 12;
const DELTA: &str = "-delta";

/// Makes the names of one run.
#[derive(Debug, Clone)]
pub struct Temporary {
    run: String,
}

impl Temporary {
    /// For a run; only letters and digits of it are used, the last twelve.
    #[must_use]
    pub fn new(run: &str) -> Self {
        let fit: Vec<char> = run.chars().filter(char::is_ascii_alphanumeric).collect();
        let run = fit[fit.len().saturating_sub(RUN_BYTES_MAX)..].iter().collect();
        Self { run }
    }

    /// The run as it is used in names.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.run
    }

    /// A node, job or export of the disk with this number.
    #[must_use]
    pub fn node(&self, kind: &str, number: usize) -> String {
        format!("{TEMPORARY_PREFIX}{}-{kind}{number}", self.run)
    }

    /// The bitmap that carries a delta to its export.
    #[must_use]
    pub fn delta(&self) -> String {
        format!("{TEMPORARY_PREFIX}{}{DELTA}", self.run)
    }
}

/// Says that a VM stands still because of keepmark: a disabled bitmap of this name is there while it does.
pub const PAUSED: &str = "km1tmp-paused-";
/// Says that a guest's file systems are frozen because of keepmark.
pub const FROZEN: &str = "km1tmp-frozen-";

/// Says that keepmark shuts the guest down to write its disks, and is to start it again.
pub const HALTED: &str = "km1tmp-halted-";
/// Says that a disk is half reverted; what follows tells to which backup, and whose disk it is.
pub const REVERTING: &str = "km1tmp-reverting-";

/// Whether a bitmap carries a delta to its export.
#[must_use]
pub fn is_delta(name: &str) -> bool {
    is_ours(name) && name.ends_with(DELTA)
}

/// Whether a name is that of something temporary of ours.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name.starts_with(TEMPORARY_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_fit_into_qemu() {
        let names = Temporary::new("20261122T180000Z-0123456789abcdef");
        assert_eq!(names.run(), "456789abcdef");
        assert!(
            names.node("scratch", 999).len() <= 31
                && is_ours(&names.node("s", 1))
                && is_delta(&names.delta())
                && !is_delta(PAUSED)
                && is_ours(PAUSED)
        );
        assert!(!is_ours("km1-20261122T180000Z-3f9a1c0d7be2"));
    }
}
