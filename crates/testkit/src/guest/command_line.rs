//! What the test guest is told by its kernel's command line.

use std::fmt;

/// The kernel's command line; its `Display` is the text.
#[derive(Clone, Debug, Default)]
pub(crate) struct CommandLine(Vec<String>);

impl CommandLine {
    /// Mount these disks (ext4) under `/mnt/NAME`.
    pub(crate) fn mount(&mut self, disks: &[&str]) {
        self.add(format!("km.mount={}", disks.join(",")));
    }

    /// Write to the mounted `disk` all the time, `per_second` times 64 KiB at most, each write synced.
    pub(crate) fn writer(&mut self, disk: &str, per_second: u32) {
        self.add(format!("km.writer={disk}:{per_second}"));
    }

    pub(crate) fn add(&mut self, argument: impl Into<String>) {
        self.0.push(argument.into());
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("console=ttyS0 quiet panic=-1 tsc=unstable")?;
        self.0.iter().try_for_each(|argument| write!(f, " {argument}"))
    }
}
