//! Who keeps marked packs from going: a pure function of the marks and of the locks that are there.

use jiff::SignedDuration;

use crate::repository::id::Id;
use crate::repository::lock::Other;
use crate::repository::lock::file::{STALE_AFTER, Verdict};

/// What stands between marks and their end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hindrances {
    /// Locks of the dead: they are removed, so that whoever comes to life again sees it.
    pub dead: Vec<Id>,
    /// Programs that know no marks, in words: nothing goes while they are there.
    pub strangers: Vec<String>,
    /// For each mark, in order: keepmarks that do not know it, in words.
    pub unaware: Vec<Vec<String>>,
}

/// Judges the locks of others. A lock that is only old, and not known to be a dead process's, holds for `delay` after it was written.
#[must_use]
pub fn judge(marks: &[Id], others: &[Other], delay: SignedDuration) -> Hindrances {
    let mut hindrances = Hindrances { unaware: vec![Vec::new(); marks.len()], ..Hindrances::default() };
    for other in others {
        if is_dead(other, delay) {
            hindrances.dead.push(other.id);
            continue;
        }
        match &other.lock.keepmark {
            None => hindrances.strangers.push(other.lock.words()),
            Some(holder) => {
                for (mark, unaware) in marks.iter().zip(&mut hindrances.unaware) {
                    if !holder.marks.contains(mark) {
                        unaware.push(other.lock.words());
                    }
                }
            }
        }
    }
    hindrances
}

fn is_dead(other: &Other, delay: SignedDuration) -> bool {
    match other.verdict {
        Verdict::Dead => true,
        Verdict::Expired => other.age > patience(delay),
        Verdict::Held => false,
    }
}

/// How long the lock of somebody who is not known to be dead holds.
#[must_use]
pub fn patience(delay: SignedDuration) -> SignedDuration {
    delay.max(STALE_AFTER)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::repository::lock::file::{Holder, LockFile};

    const MARKS: [Id; 2] = [Id([1; 32]), Id([2; 32])];
    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn other(number: u8, verdict: Verdict, age_min: i64, knows: Option<&[Id]>) -> Other {
        let since = Timestamp::UNIX_EPOCH;
        let holder = |marks: &[Id]| Holder { id: Id([number; 32]), prunes: false, since, born: None, marks: marks.to_vec() };
        let lock = LockFile {
            time: since,
            exclusive: false,
            hostname: format!("h{number}"),
            username: String::new(),
            pid: number.into(),
            uid: 0,
            gid: 0,
            keepmark: knows.map(holder),
        };
        Other { id: Id([number; 32]), lock, written: None, age: SignedDuration::from_mins(age_min), verdict }
    }

    /// Numbers of the dead, number of strangers, and of the unaware of each mark.
    fn judged(others: &[Other]) -> (Vec<u8>, usize, Vec<usize>) {
        let Hindrances { dead, strangers, unaware } = judge(&MARKS, others, DAY);
        (dead.iter().map(|id| id.0[0]).collect(), strangers.len(), unaware.iter().map(Vec::len).collect())
    }

    #[test]
    fn only_who_knows_a_mark_or_is_dead_is_not_waited_for() {
        use Verdict::{Dead, Expired, Held};
        assert_eq!(judged(&[]), (vec![], 0, vec![0, 0]));
        assert_eq!(judged(&[other(1, Held, 1, Some(&[]))]), (vec![], 0, vec![1, 1]));
        assert_eq!(judged(&[other(1, Held, 1, Some(&MARKS[..1]))]), (vec![], 0, vec![0, 1]));
        assert_eq!(judged(&[other(1, Held, 1, Some(&MARKS))]), (vec![], 0, vec![0, 0]));
        assert_eq!(judged(&[other(1, Dead, 1, Some(&[])), other(2, Dead, 1, None)]), (vec![1, 2], 0, vec![0, 0]));
        assert_eq!(judged(&[other(1, Held, 1, None)]), (vec![], 1, vec![0, 0]));
        // Whoever is only late may come back within the delay.
        assert_eq!(judged(&[other(1, Expired, 24 * 60, Some(&[])), other(2, Expired, 31, None)]), (vec![], 1, vec![1, 1]));
        assert_eq!(judged(&[other(1, Expired, 24 * 60 + 1, Some(&[])), other(2, Expired, 24 * 60 + 1, None)]), (vec![1, 2], 0, vec![0, 0]));
        assert_eq!(patience(SignedDuration::ZERO), STALE_AFTER);
    }
}
