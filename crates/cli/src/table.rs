//! Plain aligned columns, as virsh and restic print them.

use comfy_table::{ContentArrangement, Table, presets};

/// A table without borders; columns are as wide as they need to be.
pub fn plain(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header.iter().copied());
    table.add_rows(rows);
    table.lines().map(|line| format!("{}\n", line.trim())).collect()
}
