//! Which processes have a file open, by device and inode, as far as this user may see.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A process that has a file open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its command line, shortened.
    pub command: String,
}

/// All other processes that have the file open. Those of other users are seen by root only.
#[must_use]
pub fn of(path: &Path) -> Vec<Holder> {
    let Ok(wanted) = fs::metadata(path).map(|meta| identity(&meta)) else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| pid != std::process::id() && has_open(pid, wanted)).map(|pid| Holder { pid, command: command_line(pid) }).collect()
}

/// A process's command line for people: arguments joined by blanks, cut after 120 characters.
#[must_use]
pub fn command_line(pid: u32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = raw.split(|&byte| byte == 0).filter(|word| !word.is_empty()).map(String::from_utf8_lossy).collect::<Vec<_>>();
    words.join(" ").chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect()
}

/// In words, for a message.
#[must_use]
pub fn describe(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "another process (run as root to see which)".into();
    }
    holders.iter().map(|holder| format!("process {} ({})", holder.pid, holder.command)).collect::<Vec<_>>().join(", ")
}

// A block device is the same device under any inode.
fn identity(meta: &fs::Metadata) -> (u64, u64, u64) {
    if meta.rdev() == 0 { (meta.dev(), meta.ino(), 0) } else { (0, 0, meta.rdev()) }
}

fn has_open(pid: u32, wanted: (u64, u64, u64)) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|entry| fs::metadata(entry.path()).is_ok_and(|meta| identity(&meta) == wanted))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_that_holds_a_file_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let input = file.reopen().unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(input)).spawn().unwrap();
        let pid = child.id();
        let holders = (0..100)
            .map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                of(file.path())
            })
            .find(|holders| holders.iter().any(|holder| holder.command.starts_with("sleep")));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(holders, Some(vec![Holder { pid, command: "sleep 60".into() }]));
        assert!(describe(&[]).contains("another process"));
    }
}
