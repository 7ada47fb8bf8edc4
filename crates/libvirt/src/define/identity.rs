//! Who a restored domain is: the same one where it can be, else a new one.

use super::rewrite::{Random, Work};
use super::tree::Element;
use crate::error::{Error, Result};

/// Decides whether the domain stays the same one, and gives it its name and UUID.
pub(super) fn rewrite(domain: &mut Element, work: &mut Work<'_>, random: Random<'_>) -> Result<()> {
    let lacks = |what| Error::Lacks { subject: "the domain in the backup", what };
    let name = domain.text_of("name").ok_or_else(|| lacks("name"))?.to_owned();
    // It becomes the name of a folder.
    let uuid = domain.text_of("uuid").filter(|text| is_uuid(text)).ok_or_else(|| lacks("uuid"))?.to_ascii_lowercase();
    let is_used = work.facts.uuids.contains(&uuid);
    work.stays = name == work.wish.name && !is_used;
    if work.stays {
        work.uuid = uuid;
    } else {
        work.uuid = fresh_uuid(random);
        let why = if is_used { "its UUID is in use on this host".to_owned() } else { format!("it was called {name}") };
        work.remarks
            .note(format!("{} gets a UUID and MAC addresses of its own, since {why}; its backups begin a new sequence", work.wish.name));
    }
    let (name, uuid) = (work.wish.name.clone(), work.uuid.clone());
    domain.edit("name", |element| element.set_text(&name));
    domain.edit("uuid", |element| element.set_text(&uuid));
    domain.unset("id");
    smbios(domain, &uuid);
    generation(domain, work, random);
    // What libvirt made up when the domain was started; it makes new ones.
    domain.retain(|element| {
        !(element.name() == "seclabel" && element.get("type").is_none_or(|kind| kind == "dynamic") && is_generated(element))
    });
    Ok(())
}

// As libvirt writes it.
fn is_uuid(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

fn is_generated(label: &Element) -> bool {
    label.child("label").is_some() || label.child("imagelabel").is_some()
}

// libvirt refuses a domain whose firmware would tell another UUID than its own.
fn smbios(domain: &mut Element, uuid: &str) {
    domain.each(&mut |element| {
        if element.name() == "entry" && element.get("name") == Some("uuid") {
            element.set_text(uuid);
        }
    });
}

// The guest has to see that it is not where it was before: that is what this number is for.
fn generation(domain: &mut Element, work: &mut Work<'_>, random: Random<'_>) {
    if let Some(element) = domain.child_mut("genid") {
        element.set_text(&fresh_uuid(random));
        work.remarks.note("the VM generation id is a new one: the guest sees that it was restored".into());
    }
}

/// A random UUID of version 4.
fn fresh_uuid(random: Random<'_>) -> String {
    let bits = (0..4).fold(0_u128, |bits, _| bits << 32 | u128::from(random()));
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_uuid_says_that_it_is_random() {
        assert_eq!(fresh_uuid(&mut || 0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(fresh_uuid(&mut || u32::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
