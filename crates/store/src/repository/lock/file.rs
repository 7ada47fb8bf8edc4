//! Lock files as restic writes them, with what keepmark adds; and what becomes of somebody else's.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::repository::id::Id;
use crate::repository::lock::Environment;

/// A lock that was not refreshed for so long has lost its owner; restic's own limit.
pub const STALE_AFTER: SignedDuration = SignedDuration::from_mins(30);

/// A lock file as JSON has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockFile {
    /// When it was written last.
    pub time: Timestamp,
    /// Whether nobody else may be there.
    pub exclusive: bool,
    /// Host of the owner.
    #[serde(default)]
    pub hostname: String,
    /// User of the owner.
    #[serde(default)]
    pub username: String,
    /// Process of the owner.
    #[serde(default)]
    pub pid: u32,
    /// The user's id.
    #[serde(default)]
    pub uid: u32,
    /// The group's id.
    #[serde(default)]
    pub gid: u32,
    /// Who holds it, if that is a keepmark that knows of marks. Other programs ignore it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepmark: Option<Holder>,
}

/// A keepmark that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Random, and the same for as long as the lock is held: refreshing it changes the file's name.
    pub id: Id,
    /// Whether it prunes. Its lock is exclusive against other programs only.
    #[serde(default)]
    pub prunes: bool,
    /// When it began, by its own clock; for people.
    pub since: Timestamp,
    /// When it began by the clock of the place where the repository is, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born: Option<Timestamp>,
    /// Marks that it knows: it uses nothing that is in their packs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Id>,
}

/// What becomes of someone else's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its owner lives, or may live.
    Held,
    /// It is so old that its owner would have refreshed it.
    Expired,
    /// Its owner was a process of this host and is gone.
    Dead,
}

impl LockFile {
    /// A lock of ours.
    #[must_use]
    pub fn ours(environment: &Environment, exclusive: bool, holder: Holder) -> Self {
        let Environment { hostname, username, uid, gid, pid, now, .. } = environment.clone();
        Self { time: now(), exclusive, hostname, username, pid, uid, gid, keepmark: Some(holder) }
    }

    /// Whether its owner is still there; `age` is how long ago it was written by the place's own clock, where that is known.
    /// Clocks of two hosts may differ: it has to be old by both.
    #[must_use]
    pub fn judge(&self, environment: &Environment, age: Option<SignedDuration>) -> Verdict {
        if self.hostname == environment.hostname && self.pid != environment.pid && !(environment.is_alive)(self.pid) {
            return Verdict::Dead;
        }
        if self.age(environment, age) > STALE_AFTER { Verdict::Expired } else { Verdict::Held }
    }

    /// How long it was not refreshed: the shorter of what the two clocks say.
    #[must_use]
    pub fn age(&self, environment: &Environment, age: Option<SignedDuration>) -> SignedDuration {
        let own = (environment.now)().duration_since(self.time);
        age.map_or(own, |age| age.min(own))
    }

    /// Whether a keepmark that prunes holds it.
    #[must_use]
    pub fn prunes(&self) -> bool {
        self.keepmark.as_ref().is_some_and(|holder| holder.prunes)
    }

    /// Whether it keeps a keepmark from working, or from pruning. One that prunes knows how not to disturb others of its kind.
    #[must_use]
    pub fn refuses(&self, pruning: bool) -> bool {
        if self.prunes() { pruning } else { self.exclusive }
    }

    /// Who holds it, in words.
    #[must_use]
    pub fn words(&self) -> String {
        let since = self.keepmark.as_ref().map_or(self.time, |holder| holder.since);
        let program = if self.keepmark.is_some() { "keepmark" } else { "another program" };
        format!("{program}, process {} on {} since {since:.0}", self.pid, self.hostname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn environment() -> Environment {
        Environment {
            hostname: "here".into(),
            username: "root".into(),
            uid: 0,
            gid: 0,
            pid: 100,
            now: || Timestamp::from_second(NOW).unwrap(),
            is_alive: |pid| pid == 200,
        }
    }

    fn lock(hostname: &str, pid: u32, age_s: i64) -> LockFile {
        let time = Timestamp::from_second(NOW - age_s).unwrap();
        LockFile { time, exclusive: true, hostname: hostname.into(), username: String::new(), pid, uid: 0, gid: 0, keepmark: None }
    }

    #[test]
    fn staleness_table() {
        let cases = [
            ("here", 200, 10, None, Verdict::Held),
            ("here", 300, 10, None, Verdict::Dead),
            ("here", 100, 10, None, Verdict::Held),
            ("here", 200, 1801, None, Verdict::Expired),
            ("there", 300, 1800, None, Verdict::Held),
            ("there", 300, 1801, None, Verdict::Expired),
            ("there", 300, -500, None, Verdict::Held),
            // Our clock is ahead of the other host's, or behind it: it takes both.
            ("there", 300, 9000, Some(10), Verdict::Held),
            ("there", 300, 10, Some(9000), Verdict::Held),
            ("there", 300, 1801, Some(1801), Verdict::Expired),
        ];
        for (hostname, pid, age, by_place, verdict) in cases {
            let by_place = by_place.map(SignedDuration::from_secs);
            assert_eq!(lock(hostname, pid, age).judge(&environment(), by_place), verdict, "{hostname} {pid} {age} {by_place:?}");
        }
    }

    #[test]
    fn who_prunes_excludes_other_programs_and_other_pruners_only() {
        let holder = |prunes| Holder { id: Id([1; 32]), prunes, since: Timestamp::UNIX_EPOCH, born: None, marks: vec![] };
        let by = |exclusive, holder| LockFile { exclusive, keepmark: holder, ..lock("there", 1, 1) };
        let cases = [
            (by(true, None), [true, true]),
            (by(false, None), [false, false]),
            (by(false, Some(holder(false))), [false, false]),
            (by(false, Some(holder(true))), [false, true]),
            (by(true, Some(holder(true))), [false, true]),
        ];
        for (lock, refuses) in cases {
            assert_eq!([lock.refuses(false), lock.refuses(true)], refuses, "{lock:?}");
        }
    }

    #[test]
    fn a_lock_reads_as_restic_writes_it() {
        let json =
            r#"{"time":"2026-11-22T20:00:00.123456789+01:00","exclusive":true,"hostname":"h","username":"u","pid":7,"uid":1,"gid":2}"#;
        let lock: LockFile = serde_json::from_str(json).unwrap();
        assert!(lock.exclusive && lock.pid == 7 && lock.keepmark.is_none());
        assert!(!serde_json::to_string(&lock).unwrap().contains("keepmark"));
    }
}
