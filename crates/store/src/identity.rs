//! What tells a store from a copy of it: which file or folder its mark is, which every copy of one changes.

use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use crate::folders;

/// File systems that number their files anew each time they are mounted: FAT and exFAT.
const NUMBERED_ANEW: [rustix::fs::FsWord; 2] = [0x4d44, 0x2011_bab0];

/// Number and birth of a file or folder. It keeps both when it is renamed, and a copy of it (`cp`, `rsync`, a backup put back) has others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    inode: u64,
    /// Where the file system tells it.
    born: Option<Timestamp>,
}

impl FileIdentity {
    /// Of what is at a path. Nothing where it is not there, and on file servers, FUSE and FAT, whose numbers may be others each time.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let is_lasting = !folders::is_remote(path) && !rustix::fs::statfs(path).is_ok_and(|facts| NUMBERED_ANEW.contains(&facts.f_type));
        let facts = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted).ok().filter(|_| is_lasting)?;
        let is_told = facts.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born = Timestamp::new(facts.stx_btime.tv_sec, i32::try_from(facts.stx_btime.tv_nsec).unwrap_or(0)).ok().filter(|_| is_told);
        Some(Self { inode: facts.stx_ino, born })
    }

    /// Whether both can be the same one; a birth that is not told proves nothing.
    #[must_use]
    pub fn can_be(&self, other: &Self) -> bool {
        self.inode == other.inode && self.born.zip(other.born).is_none_or(|(one, other)| one == other)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_renamed_stays_itself_and_a_copy_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let [one, moved, copy] = ["one", "moved", "copy"].map(|name| folder.path().join(name));
        fs::write(&one, "x").unwrap();
        let then = FileIdentity::of(&one).unwrap();
        fs::rename(&one, &moved).unwrap();
        fs::copy(&moved, &copy).unwrap();
        let can_be = |path: &Path| FileIdentity::of(path).unwrap().can_be(&then);
        assert!(can_be(&moved) && !can_be(&copy));
        assert_eq!(FileIdentity::of(&one), None);
        let told = FileIdentity { inode: 1, born: Some(Timestamp::UNIX_EPOCH) };
        assert!(told.can_be(&FileIdentity { inode: 1, born: None }) && !told.can_be(&FileIdentity { inode: 2, born: None }));
        assert!(!told.can_be(&FileIdentity { inode: 1, born: Some(Timestamp::MAX) }));
    }
}
