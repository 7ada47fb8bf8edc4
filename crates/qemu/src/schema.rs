//! What a QEMU can do, read from its own description (`query-qmp-schema`). Pure.

use std::collections::HashMap;

use serde_json::Value;

/// What a QEMU can do, as far as it matters here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Copy-before-write filters that break the backup rather than the guest, with a time-out (QEMU >= 7.1).
    pub guest_first_filter: bool,
    /// Reading a filter's frozen content (QEMU >= 7.0).
    pub snapshot_access: bool,
    /// Staying when the guest powers down (`set-action`, QEMU >= 6.0).
    pub set_action: bool,
    /// Exports on their own instead of `nbd-server-add` (QEMU >= 5.2).
    pub block_export: bool,
}

impl Capabilities {
    /// Reads them out of the reply to `query-qmp-schema`.
    #[must_use]
    pub fn read(schema: &[Value]) -> Self {
        let schema = Schema { entries: schema.iter().filter_map(|entry| Some((entry["name"].as_str()?, entry))).collect() };
        let filter = schema.driver("copy-before-write");
        Self {
            guest_first_filter: ["on-cbw-error", "cbw-timeout"].iter().all(|member| schema.has_member(filter, member)),
            snapshot_access: schema.driver("snapshot-access").is_some(),
            set_action: schema.entries.contains_key("set-action"),
            block_export: schema.entries.contains_key("block-export-add"),
        }
    }

    /// Whether frozen points can be made by filters.
    #[must_use]
    pub fn filters(&self) -> bool {
        self.guest_first_filter && self.snapshot_access
    }
}

struct Schema<'a> {
    entries: HashMap<&'a str, &'a Value>,
}

impl<'a> Schema<'a> {
    // The type of a block driver's options.
    fn driver(&self, name: &str) -> Option<&'a str> {
        let options = self.entries.get("blockdev-add")?["arg-type"].as_str()?;
        let variants = self.entries.get(options)?["variants"].as_array()?;
        variants.iter().find(|variant| variant["case"] == name)?["type"].as_str()
    }

    fn has_member(&self, kind: Option<&str>, member: &str) -> bool {
        let members = kind.and_then(|kind| self.entries.get(kind)).and_then(|entry| entry["members"].as_array());
        members.is_some_and(|members| members.iter().any(|known| known["name"] == member))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(cbw_members: &[&str]) -> Vec<Value> {
        let members: Vec<Value> = cbw_members.iter().map(|name| json!({"name": name, "type": "str"})).collect();
        vec![
            json!({"name": "blockdev-add", "meta-type": "command", "arg-type": "1"}),
            json!({"name": "1", "meta-type": "object", "variants": [{"case": "copy-before-write", "type": "2"}, {"case": "snapshot-access", "type": "3"}]}),
            json!({"name": "2", "meta-type": "object", "members": members}),
            json!({"name": "block-export-add", "meta-type": "command"}),
        ]
    }

    #[test]
    fn old_filters_without_guest_first_do_not_count() {
        let new = Capabilities::read(&schema(&["file", "on-cbw-error", "cbw-timeout"]));
        assert!(new.filters() && new.block_export);
        assert!(!Capabilities::read(&schema(&["file", "bitmap"])).filters());
        assert_eq!(Capabilities::read(&[]), Capabilities::default());
        assert_eq!(Capabilities::read(&[json!(null), json!({"name": "blockdev-add"})]), Capabilities::default());
    }
}
