//! The documented shapes of every `--json` output, as goldens with ids, times and sizes of encodings redacted.

use insta::assert_snapshot;
use keepmark_testkit::image::{self, Format};
use serde_json::Value;

use crate::lab::{Lab, MIB, UUID, id, image_vm, text};

/// Values that differ from run to run or machine to machine become words.
fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| match key.as_str() {
            "id" | "backup" | "time" | "full" | "differential" | "checkpoint" | "pause_ms" | "duration_ms" | "freeze_ms"
            | "stored_bytes" | "audited_bytes" | "audit" | "program" | "hypervisor" | "image" | "image_id" | "path" | "store"
            | "bytes_read" | "base" => redact_to(value, &format!("[{key}]")),
            "reason" | "text" | "problem" | "subject" | "due" => redact_to(value, "[words]"),
            _ => redact(value),
        }),
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::String(text) if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => *text = "[id]".to_owned(),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn redact_to(value: &mut Value, word: &str) {
    if !value.is_null() {
        *value = word.into();
    }
}

#[track_caller]
fn shape(lab: &Lab, code: i32, arguments: &[&str]) -> String {
    let run = lab.keepmark.exits(&[arguments, &["--json"]].concat(), code);
    let shown = |mut value: Value| {
        redact(&mut value);
        serde_json::to_string_pretty(&value).unwrap()
    };
    run.json().into_iter().map(shown).collect::<Vec<_>>().join("\n")
}

#[test]
fn json_has_the_documented_shapes() {
    let lab = Lab::without_store();
    assert_snapshot!("init", shape(&lab, 0, &["init"]));
    let image = lab.qcow2("a", 16 * MIB);
    image::fill(&image, Format::Qcow2, 5, 0, MIB);
    let vm = image_vm("vda", &image);
    let identity = ["--name", "web", "--uuid", UUID];
    let with = |command: &[&'static str]| [command, &identity].concat();
    assert_snapshot!("plan", shape(&lab, 0, &[&["plan", vm.as_str()], &with(&[])[..]].concat()));
    assert_snapshot!("backup-full", shape(&lab, 0, &[&["backup", vm.as_str()], &with(&[])[..]].concat()));
    assert_snapshot!("backup-incremental", shape(&lab, 0, &[&["backup", vm.as_str()], &with(&[])[..]].concat()));
    assert_snapshot!("list", shape(&lab, 0, &["list"]));
    assert_snapshot!("show", shape(&lab, 0, &["show", "web@latest"]));
    assert_snapshot!("restore", shape(&lab, 0, &["restore", "web@latest", "--to", text(&lab.path("out"))]));
    assert_snapshot!("verify", shape(&lab, 0, &["verify"]));
    assert_snapshot!("checkpoint-list", shape(&lab, 0, &["checkpoint", "list", &vm]));
    assert_snapshot!("checkpoint-delete", shape(&lab, 0, &["checkpoint", "delete", &vm]));
    assert_snapshot!("doctor", shape(&lab, 0, &["doctor", &vm]));
    let last = lab.keepmark.backup(&vm, &identity);
    keepmark_testkit::damage::delete(&lab.store().join("snapshots").join(id(&last)));
    keepmark_testkit::damage::flip_middle(&lab.files("data")[0]);
    assert_snapshot!("verify-damage", shape(&lab, 3, &["verify", "--read-data"]));
}
