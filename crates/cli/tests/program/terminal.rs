//! What a person sees on a terminal: a password prompt, and progress with rate and time left.

use std::path::Path;
use std::process::{Command, Stdio};

use keepmark_testkit::image::{self, Format};

use crate::lab::{Lab, MIB, image_vm};

/// Runs the program on a terminal of its own (by script), typing `input`, and gives the code and all that was shown.
fn on_terminal(lab: &Lab, arguments: &[&str], password: bool, input: &str) -> (Option<i32>, String) {
    let mut plain = lab.keepmark.command(arguments);
    if !password {
        plain.env_remove("KEEPMARK_PASSWORD");
    }
    let words: Vec<String> = std::iter::once(plain.get_program()).chain(plain.get_args()).map(quoted).collect();
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &words.join(" "), "/dev/null"]).env_clear().env("TERM", "xterm");
    script.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let typed = lab.path("typed");
    std::fs::write(&typed, "").unwrap();
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for line in input.lines() {
        // A prompt throws away what was typed before it.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        std::io::Write::write_all(&mut stdin, format!("{line}\n").as_bytes()).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn quoted(word: &std::ffi::OsStr) -> String {
    format!("'{}'", Path::new(word).display())
}

#[test]
fn the_password_is_asked_for_and_not_shown() {
    let lab = Lab::without_store();
    let (code, shown) = on_terminal(&lab, &["init"], false, "password\npassword\n");
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("Password of the store") && shown.contains("The same again"), "{shown}");
    let (code, shown) = on_terminal(&lab, &["list"], false, "password\n");
    assert_eq!(code, Some(0), "{shown}");
    let (code, shown) = on_terminal(&lab, &["list"], false, "wrong\n");
    assert_eq!(code, Some(12), "{shown}");
}

#[test]
fn progress_has_rate_and_time_left_on_a_terminal() {
    let lab = Lab::new();
    let image = lab.qcow2("a", 256 * MIB);
    image::fill_random(&image, Format::Qcow2, 3, 0, usize::try_from(192 * MIB).unwrap());
    let (code, shown) = on_terminal(&lab, &["backup", &image_vm("vda", &image), "--name", "web"], true, "");
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("/s") && shown.contains(" left"), "{shown}");
    let elsewhere = lab.keepmark.ok(&["verify", "--read-data"]);
    assert!(!elsewhere.stderr.contains('\u{1b}'), "{}", elsewhere.stderr);
}

/// Bars of two VMs stand on the screen together, each with its VM's name.
#[test]
fn progress_of_several_vms_is_on_one_screen() {
    let lab = Lab::new();
    let image = |name: &str, seed: u64| {
        let image = lab.qcow2(name, 256 * MIB);
        image::fill_random(&image, Format::Qcow2, seed, 0, usize::try_from(160 * MIB).unwrap());
        image_vm("vda", &image)
    };
    let (first, second) = (image("web1", 3), image("web2", 4));
    let (code, shown) = on_terminal(&lab, &["backup", "--jobs", "2", &first, &second], true, "");
    assert_eq!(code, Some(0), "{shown}");
    let bars = |name: &str| shown.match_indices(&format!("{name}.qcow2 vda")).map(|(place, _)| place).collect::<Vec<_>>();
    let (first, second) = (bars("web1"), bars("web2"));
    assert!(first.first() < second.last() && second.first() < first.last(), "{shown}");
    assert!(!first.is_empty() && !second.is_empty(), "{shown}");
}
