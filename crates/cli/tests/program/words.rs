//! Exit codes and words of wrong usage, configuration, environment and passwords; stdout carries data only.

use crate::lab::{Lab, assert_says, image_vm, text};

#[test]
fn wrong_usage_is_2_and_says_what_was_expected() {
    let lab = Lab::new();
    for (arguments, words) in [
        (&["frobnicate"][..], "unrecognized subcommand"),
        (&[], "Usage"),
        (&["backup", "http:/x"], "qmp:SOCKET or image:"),
        (&["backup", "qmp:"], "lacks a socket"),
        (&["backup", "qmp:/x", "--kind", "sometimes"], "incremental"),
        (&["restore", "web@latest"], "--to"),
        (&["show", "nothing@latest"], "no backup of a VM called"),
        (&["show", "0123abcd"], "no backup's id begins with"),
        (&["list", "nobody"], "no backup of a VM called"),
        (&["list", "--store", "s3:bucket"], "is no store"),
        (&["list", "-q", "-v"], "cannot be used with"),
    ] {
        let run = lab.keepmark.exits(arguments, 2);
        assert_says(&run, &[words]);
        assert_eq!(run.stdout, "", "{arguments:?}");
    }
}

#[test]
fn a_store_and_a_password_must_be_named() {
    let lab = Lab::new();
    assert_says(&lab.keepmark.clone().env("KEEPMARK_STORE", "").exits(&["list"], 2), &["no store was named", "--store"]);
    assert_says(&lab.keepmark.clone().password("").exits(&["list"], 2), &["no password", "--password-file"]);
}

#[test]
fn passwords_come_from_files_and_the_environment() {
    let lab = Lab::new();
    let file = lab.path("password");
    std::fs::write(&file, "password\nsecond line\n").unwrap();
    let wrong = lab.keepmark.clone().password("wrong");
    wrong.exits(&["list"], 12);
    wrong.ok(&["list", "--password-file", text(&file)]);
    lab.keepmark.clone().password("").env("KEEPMARK_PASSWORD_FILE", text(&file)).ok(&["list"]);
    std::fs::write(&file, "\n").unwrap();
    assert_says(&lab.keepmark.exits(&["list", "--password-file", text(&file)], 2), &["no password on its first line"]);
    lab.keepmark.exits(&["list", "--password-file", text(&lab.path("none"))], 2);
}

#[test]
fn the_configuration_names_store_and_password_and_refuses_unknown_keys() {
    let lab = Lab::new();
    let password = lab.path("password");
    std::fs::write(&password, "password\n").unwrap();
    lab.keepmark.configure(&format!("store = {:?}\npassword_file = {:?}\n", lab.store(), password));
    lab.keepmark.clone().env("KEEPMARK_STORE", "/nonexistent").exits(&["list"], 10);
    let config = lab.path("home/.config/keepmark/keepmark.toml");
    let bare = lab.keepmark.clone().password("");
    let mut command = bare.command(&["list"]);
    assert!(command.env_remove("KEEPMARK_STORE").status().unwrap().success());
    lab.keepmark.configure("stoer = \"/x\"\n");
    assert_says(&lab.keepmark.exits(&["list"], 2), &["stoer", "keepmark.toml"]);
    std::fs::write(&config, "run_dir = 5\n").unwrap();
    assert_says(&lab.keepmark.exits(&["list"], 2), &["keepmark.toml"]);
    assert_says(&lab.keepmark.exits(&["list", "--config", text(&lab.path("none.toml"))], 2), &["none.toml"]);
}

#[test]
fn quiet_says_nothing_and_data_goes_to_stdout_alone() {
    let lab = Lab::new();
    let vm = image_vm("vda", &lab.qcow2("a", 1 << 20));
    let quiet = lab.keepmark.ok(&["backup", &vm, "--name", "web", "-q"]);
    assert_eq!(quiet.stderr, "");
    let json = lab.keepmark.ok(&["backup", &vm, "--name", "web", "--json"]);
    assert_eq!(json.json().len(), 1);
    assert_eq!(lab.keepmark.ok(&["list"]).stderr, "");
}

#[test]
fn a_store_can_be_written_with_its_scheme() {
    let lab = Lab::new();
    lab.keepmark.ok(&["list", "--store", &format!("repo:{}", lab.store().display())]);
}
