//! Which kernel modules to load, and in which order, from depmod's `modules.dep`.

use std::collections::HashMap;

use crate::fail;

/// Paths of the modules called `wanted` and of all that they need, each after what it needs. Those in the kernel itself
/// (`modules.builtin`) are left out.
pub fn load_order(dependencies: &str, builtin: &str, wanted: &[&str]) -> Vec<String> {
    let table: HashMap<&str, Vec<&str>> = dependencies.lines().filter_map(entry).collect();
    let mut ordered = Vec::new();
    for name in wanted {
        match table.keys().find(|path| module_name(path) == *name) {
            Some(path) => visit(path, &table, &mut ordered),
            None if builtin.lines().any(|path| module_name(path) == *name) => {}
            None => fail(format_args!("the kernel has no module {name}")),
        }
    }
    ordered
}

fn entry(line: &str) -> Option<(&str, Vec<&str>)> {
    let (path, needs) = line.split_once(':')?;
    Some((path, needs.split_whitespace().collect()))
}

fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

/// A module's line names everything that it needs; depmod knows no cycles.
fn visit(path: &str, table: &HashMap<&str, Vec<&str>>, ordered: &mut Vec<String>) {
    if ordered.iter().any(|done| done == path) {
        return;
    }
    for need in table.get(path).into_iter().flatten() {
        visit(need, table, ordered);
    }
    ordered.push(path.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_what_it_needs() {
        let dependencies = "k/a.ko: k/b.ko k/c.ko\nk/b.ko: k/c.ko\nk/c.ko:\nk/d.ko:\n";
        assert_eq!(load_order(dependencies, "k/e.ko\n", &["a", "d", "e"]), ["k/c.ko", "k/b.ko", "k/a.ko", "k/d.ko"]);
    }
}
