//! Help that teaches, manual pages and completions.

use std::process::{Command, Stdio};

use crate::lab::{Lab, text};

const COMMANDS: [&str; 20] = [
    "adopt-copy",
    "scheme",
    "forget",
    "delete",
    "pin",
    "unpin",
    "init",
    "backup",
    "plan",
    "list",
    "status",
    "show",
    "restore",
    "revert",
    "verify",
    "prune",
    "checkpoint",
    "doctor",
    "completion",
    "man",
];

#[test]
fn every_command_explains_itself_with_an_example() {
    let lab = Lab::without_store();
    let overview = lab.keepmark.ok(&["--help"]).stdout;
    for command in COMMANDS {
        assert!(overview.contains(&format!("\n  {command} ")), "{command} is not in the overview");
        let help = lab.keepmark.ok(&[command, "--help"]).stdout;
        let examples = help.split("Examples:").nth(1).unwrap_or_else(|| panic!("{command} has no example"));
        assert!(examples.contains(&format!("keepmark {command}")) || examples.contains(&format!(" {command} ")), "{examples}");
        assert!(help.lines().all(|line| line.len() <= 140), "{command}: long lines");
    }
    assert!(!overview.contains("internal-watchdog"));
    for words in ["Exit codes: 0 done", "130 interrupted", "image:[LABEL=]FILE"] {
        assert!(overview.contains(words), "{words}");
    }
}

#[test]
fn manual_pages_are_made_for_the_whole_and_each_command() {
    let lab = Lab::without_store();
    assert!(lab.keepmark.ok(&["man"]).stdout.contains(".TH keepmark 1"));
    let folder = lab.path("man");
    std::fs::create_dir(&folder).unwrap();
    lab.keepmark.ok(&["man", "--to", text(&folder)]);
    for command in COMMANDS {
        assert!(folder.join(format!("keepmark-{command}.1")).is_file(), "{command}");
    }
    assert!(folder.join("keepmark.1").is_file());
    assert!(!folder.join("keepmark-internal-watchdog.1").exists());
}

#[test]
fn completions_are_made_and_bash_accepts_its_own() {
    let lab = Lab::without_store();
    for shell in ["bash", "zsh", "fish"] {
        let script = lab.keepmark.ok(&["completion", shell]).stdout;
        assert!(script.contains("keepmark") && script.contains("restore"), "{shell}");
    }
    let file = lab.path("completion");
    std::fs::write(&file, lab.keepmark.ok(&["completion", "bash"]).stdout).unwrap();
    assert!(Command::new("bash").arg("-n").arg(&file).stdin(Stdio::null()).status().unwrap().success());
}
