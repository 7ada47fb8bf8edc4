//! The tree behind a sequence: each backup below the one that it builds on.

use keepmark_model::manifest::StoredBackup;

/// Draws the backups (oldest first), each below the newest of those that it builds on; `tell` gives a backup's own line.
pub fn tree(backups: &[&StoredBackup], tell: &dyn Fn(&StoredBackup) -> String) -> String {
    let mut below: Vec<Vec<usize>> = vec![Vec::new(); backups.len()];
    let mut roots = Vec::new();
    for (place, backup) in backups.iter().enumerate() {
        match backups.iter().take(place).rposition(|other| backup.builds_on.contains(&other.id)) {
            Some(parent) => below[parent].push(place),
            None => roots.push(place),
        }
    }
    // From the last to the first, since the stack gives the last one first. Chains may be long: nothing calls itself.
    let mut waiting: Vec<(usize, String, String)> = roots.into_iter().rev().map(|root| (root, String::new(), String::new())).collect();
    let mut text = String::new();
    while let Some((place, branch, indent)) = waiting.pop() {
        text.push_str(&format!("{branch}{}\n", tell(backups[place])));
        for (number, child) in below[place].iter().rev().enumerate() {
            let (mark, space) = if number == 0 { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            waiting.push((*child, format!("{indent}{mark}"), format!("{indent}{space}")));
        }
    }
    text
}
