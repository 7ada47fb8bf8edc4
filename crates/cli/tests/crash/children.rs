//! The processes that a running keepmark has started.

use nix::unistd::Pid;

/// The child of keepmark whose command line has this word: its watchdog, its storage daemon.
pub fn child(keepmark: u32, word: &str) -> Option<Pid> {
    let threads = std::fs::read_dir(format!("/proc/{keepmark}/task")).ok()?.flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok()).collect::<Vec<_>>().join(" ");
    let mut ids = children.split_whitespace().filter_map(|id| id.parse().ok());
    ids.find(|id| has_word(*id, word)).map(Pid::from_raw)
}

fn has_word(process: i32, word: &str) -> bool {
    let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line.split(|&byte| byte == 0).any(|argument| argument.ends_with(word.as_bytes()))
}

/// Whether it is gone with all that it had open. One that nobody has waited for yet is a zombie, and gone; one of several threads
/// may be a zombie while another still holds the files of all.
pub fn is_dead(process: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
    !status.contains("State:") || (status.contains("State:\tZ") && threads <= 1)
}
