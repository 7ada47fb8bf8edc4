//! What each damage must lead to: derived from who needs what, not from what the program does.

use crate::world::{File, Whose};

/// How a file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    Deleted,
    Emptied,
    /// The second half is cut off.
    Halved,
    /// A bit of the first byte is flipped.
    FirstByte,
    /// One in the middle.
    MiddleByte,
    /// One of the last.
    LastByte,
    /// By another of its kind, or an older version of itself.
    Replaced,
}

pub const DAMAGES: [Damage; 7] =
    [Damage::Deleted, Damage::Emptied, Damage::Halved, Damage::FirstByte, Damage::MiddleByte, Damage::LastByte, Damage::Replaced];

/// What becomes of the VM's next backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is built on the second, or on the first where the second is not listed any more.
    Incremental,
    /// The base is refused and everything is stored anew.
    Anew,
    /// Nothing is stored; the error says why.
    Refused,
    /// Either is built on what it cannot know to be damaged, and then a verification that reads everything names it, or stored anew.
    Unseen,
}

/// What a damage must lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Whether the repository opens.
    pub opens: bool,
    /// Whether `verify` finds something, and whom it hits.
    pub verify: Option<Vec<Whose>>,
    /// The same of `verify --read-data`.
    pub read: Option<Vec<Whose>>,
    /// The next backup, without a verification before.
    pub next: Next,
    /// The next backup after `verify --read-data`.
    pub after: Next,
}

pub fn expected(file: File, whose: Whose, damage: Damage) -> Expected {
    let fine = Expected { opens: true, verify: None, read: None, next: Next::Incremental, after: Next::Incremental };
    match file {
        File::Config | File::Key => Expected { opens: false, next: Next::Refused, after: Next::Refused, ..fine },
        File::CachedIndex | File::CachedBackups | File::CachedNeeds => fine,
        File::Lock if damage == Damage::Deleted => fine,
        // What was never finished locks nothing; an older one would have another name.
        File::Lock if damage == Damage::Emptied => found(vec![], fine),
        File::Lock if damage == Damage::Replaced => fine,
        File::Lock => Expected { next: Next::Refused, after: Next::Refused, ..found(vec![], fine) },
        // It is as if it had been forgotten.
        File::Snapshot if damage == Damage::Deleted => fine,
        File::Snapshot => with_next(anew_if(whose == Whose::Second), found(vec![whose], fine)),
        File::Index => index(whose, damage, fine),
        File::Trees => packed(hit_by(whose), damage, true, fine),
        File::Data => packed(hit_by(whose), damage, false, fine),
    }
}

/// Who needs what came with a backup.
fn hit_by(whose: Whose) -> Vec<Whose> {
    match whose {
        Whose::First => vec![Whose::First, Whose::Second],
        Whose::Second | Whose::Other => vec![whose],
    }
}

fn found(hit: Vec<Whose>, or_else: Expected) -> Expected {
    Expected { verify: Some(hit.clone()), read: Some(hit), ..or_else }
}

fn with_next(next: Next, or_else: Expected) -> Expected {
    Expected { next, after: next, ..or_else }
}

fn anew_if(is_hit: bool) -> Next {
    if is_hit { Next::Anew } else { Next::Incremental }
}

/// A bit more or less in an index file does not show while the local cache has what it said.
fn index(whose: Whose, damage: Damage, fine: Expected) -> Expected {
    let hit = hit_by(whose);
    let after = anew_if(hit.contains(&Whose::Second));
    let length_shows = matches!(damage, Damage::Deleted | Damage::Emptied | Damage::Halved | Damage::Replaced);
    let next = if length_shows || after == Next::Incremental { after } else { Next::Unseen };
    Expected { next, after, ..found(hit, fine) }
}

/// Trees are read by every verification, chunks only if asked for; but manifests always, and they lie among the chunks.
fn packed(hit: Vec<Whose>, damage: Damage, are_trees: bool, fine: Expected) -> Expected {
    if damage == Damage::LastByte {
        // The pack's own table, which nobody needs while there is an index.
        return Expected { read: Some(vec![]), ..fine };
    }
    let shows = matches!(damage, Damage::Deleted | Damage::Emptied | Damage::Halved | Damage::Replaced);
    let after = anew_if(hit.contains(&Whose::Second));
    let next = if shows || after == Next::Incremental { after } else { Next::Unseen };
    let verify = (shows || are_trees).then(|| hit.clone());
    Expected { verify, read: Some(hit), next, after, ..fine }
}
