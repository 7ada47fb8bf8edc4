//! What keepmark answers after a backup: read, checked and told.

use std::time::Duration;

use keepmark_testkit::fail;
use serde_json::Value;

use crate::screen::{Screen, bytes, seconds, short};

/// Tells an object `finished`; `pause` is the guest's, where somebody measured it.
pub fn tell(screen: &Screen, answer: &Value, pause: Option<Duration>) {
    let kind = text(answer, "kind");
    let reason = text(&answer["disks"][0], "reason");
    let reason = reason.strip_prefix(&format!("{kind}: ")).unwrap_or(reason);
    screen.line("keepmark", &format!("{kind}: {}", short(reason, 75)));
    let pause = pause.map_or(String::new(), |pause| {
        let with_witness = answer["pause_ms"].as_u64().unwrap_or_default();
        format!("; paused {} ms (with witness {with_witness})", pause.as_millis())
    });
    let took = seconds(Duration::from_millis(answer["duration_ms"].as_u64().unwrap_or_default()));
    let [read, stored, audited] = ["read_bytes", "stored_bytes", "audited_bytes"].map(|key| bytes(total(answer, key)));
    let audit = if total(answer, "audited_bytes") > 0 { format!(" (audit: {audited})") } else { String::new() };
    screen.line("", &format!("read {read}{audit}, stored {stored}, {took}{pause}"));
}

/// Fails unless the answer has this value.
pub fn expect(answer: &Value, key: &str, value: &str) {
    if answer[key] != value {
        fail(format_args!("{key} is {}, not {value}: {answer}", answer[key]));
    }
}

/// A text of the answer.
pub fn text<'a>(answer: &'a Value, key: &str) -> &'a str {
    answer[key].as_str().unwrap_or_default()
}

/// A figure of all disks together.
pub fn total(answer: &Value, key: &str) -> u64 {
    answer["disks"].as_array().into_iter().flatten().filter_map(|disk| disk[key].as_u64()).sum()
}
