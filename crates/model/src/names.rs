//! The names by which VMs, disks, checkpoints, backups and stores are called, each a type of its own.
//!
//! Whatever is read becomes a name only through its check, also where it is decoded: a manifest with a bad name cannot be read.
//! A name becomes part of a path through [`child`] only.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What every lasting bitmap and checkpoint of keepmark begins with.
pub const CHECKPOINT_PREFIX: &str = "km1-";
/// What every temporary bitmap, node, export and job of keepmark begins with.
pub const TEMPORARY_PREFIX: &str = "km1tmp-";
/// Longest name, in bytes, that is taken from outside for a VM or a disk.
pub const NAME_BYTES_MAX: usize = 200;
/// Longest name of a file, in bytes: what file systems take.
pub const FILE_NAME_BYTES_MAX: usize = 255;
/// Longest id of a backup or a store, in bytes.
const ID_BYTES_MAX: usize = 128;
/// Characters that people do not see, or that turn the order of those that they see: a name with one is not the one that is shown.
const INVISIBLE: [std::ops::RangeInclusive<char>; 9] = [
    '\u{ad}'..='\u{ad}',
    '\u{61c}'..='\u{61c}',
    '\u{180e}'..='\u{180e}',
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{feff}'..='\u{feff}',
    '\u{fff0}'..='\u{fffb}',
    '\u{e0000}'..='\u{10ffff}',
];

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty, too long, or has characters that no file name can carry safely.
    #[error(
        "{what} name {name:?} must have 1 to {bytes_max} bytes, no '/', no control or invisible characters, and be neither '.' nor '..'"
    )]
    Unusable {
        /// What was to be named.
        what: &'static str,
        /// Longest name that is taken, bytes.
        bytes_max: usize,
        /// The name as it came.
        name: String,
    },
    /// The text is not a UUID.
    #[error("{text:?} is not a UUID (expected 8-4-4-4-12 hexadecimal digits)")]
    Uuid {
        /// The text as it came.
        text: String,
    },
    /// The text is no id of a backup or a store.
    #[error("{text:?} is no id (1 to {ID_BYTES_MAX} letters, digits, '-' and '_')")]
    Id {
        /// The text as it came.
        text: String,
    },
    /// The text does not have the form of a checkpoint name.
    #[error("{text:?} is not the name of a keepmark checkpoint (km1-<UTC time>-<12 hexadecimal digits>)")]
    Checkpoint {
        /// The text as it came.
        text: String,
    },
}

/// What may be called a VM, a disk or a file: one part of a path that people can read.
fn usable(what: &'static str, name: &str, bytes_max: usize) -> Result<String, NameError> {
    let fits = !name.is_empty() && name.len() <= bytes_max && name != "." && name != "..";
    if fits && name.chars().all(is_allowed) {
        Ok(name.to_owned())
    } else {
        Err(NameError::Unusable { what, bytes_max, name: shortened(name) })
    }
}

fn is_allowed(c: char) -> bool {
    match c {
        '/' => false,
        ' '..='~' => true,
        _ => !c.is_ascii() && !c.is_control() && !INVISIBLE.iter().any(|range| range.contains(&c)),
    }
}

fn id(text: &str) -> Result<String, NameError> {
    let fits = (1..=ID_BYTES_MAX).contains(&text.len());
    if fits && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
        Ok(text.to_owned())
    } else {
        Err(NameError::Id { text: shortened(text) })
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX).collect()
}

/// The path of what is called so in a folder. It is the one way in which a name from outside becomes part of a path.
///
/// # Errors
/// When the path would not lie right in that folder.
pub fn child(folder: &Path, name: &str) -> Result<PathBuf, NameError> {
    let path = folder.join(usable("file", name, FILE_NAME_BYTES_MAX)?);
    if path.parent() == Some(folder) && path.file_name() == Some(OsStr::new(name)) {
        Ok(path)
    } else {
        Err(NameError::Unusable { what: "file", bytes_max: FILE_NAME_BYTES_MAX, name: shortened(name) })
    }
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                $check(&text)
            }
        }

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

text_newtype!(
    /// What makes two backups belong to one sequence: a VM's UUID where one is known, else its name.
    VmId,
    VmId::new
);
text_newtype!(
    /// How a disk of a VM is called; the same disk has the same name, running or powered off.
    DiskName,
    DiskName::new
);
text_newtype!(
    /// How a small file is called that is saved beside the disks.
    FileName,
    FileName::new
);
text_newtype!(
    /// A backup's id in its store (in a repository: the snapshot's id, 64 hexadecimal digits).
    BackupId,
    BackupId::parse
);
text_newtype!(
    /// A store's lasting id (in a repository: the id in its config), hexadecimal.
    StoreId,
    StoreId::parse
);
text_newtype!(
    /// `km1-<UTC time>-<12 hexadecimal digits>`: names a moment of a VM and the bitmaps that start there; never used twice.
    CheckpointName,
    CheckpointName::parse
);

impl VmId {
    /// An id given as text, as manifests keep it.
    ///
    /// # Errors
    /// When the text cannot be a folder's name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        usable("VM", text, NAME_BYTES_MAX).map(Self)
    }
}

impl DiskName {
    /// A disk's name from outside.
    ///
    /// # Errors
    /// When the text cannot be a file's name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        usable("disk", text, NAME_BYTES_MAX).map(Self)
    }
}

impl FileName {
    /// A file's name from outside.
    ///
    /// # Errors
    /// When it would lead out of its folder, or people could not read it.
    pub fn new(text: &str) -> Result<Self, NameError> {
        usable("file", text, FILE_NAME_BYTES_MAX).map(Self)
    }
}

impl BackupId {
    /// An id that was read.
    ///
    /// # Errors
    /// When no store gives such ids.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        id(text).map(Self)
    }

    /// An id as its store makes it.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The first eight characters, as shown to people.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..8).unwrap_or(&self.0)
    }
}

impl StoreId {
    /// An id that was read.
    ///
    /// # Errors
    /// When no store has such an id.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        id(text).map(Self)
    }

    /// An id as the store makes it.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Four hexadecimal digits that say in a checkpoint's name for which store it was made.
    ///
    /// It lets an orphan be told from another store's checkpoint without a file that could be wrong. Two stores may share a
    /// tag (1 in 65,536); the price of that is a resync, never a wrong delta.
    #[must_use]
    pub fn tag(&self) -> String {
        let mixed =
            self.0.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        format!("{:04x}", (mixed ^ (mixed >> 32)) & 0xffff)
    }
}

impl CheckpointName {
    /// A new name for an attempt at `time` for `store`; `random` must be fresh for every attempt.
    #[must_use]
    pub fn make(time: Timestamp, store: &StoreId, random: u32) -> Self {
        Self(format!("{CHECKPOINT_PREFIX}{}-{}{random:08x}", time.strftime("%Y%m%dT%H%M%SZ"), store.tag()))
    }

    /// Reads a name that has exactly our form.
    ///
    /// # Errors
    /// When it has not: such a bitmap is not ours and is never touched.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let ours = text.strip_prefix(CHECKPOINT_PREFIX).and_then(|rest| rest.split_once('-')).is_some_and(|(time, random)| {
            is_compact_time(time) && random.len() == 12 && random.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if ours { Ok(Self(text.to_owned())) } else { Err(NameError::Checkpoint { text: text.chars().take(NAME_BYTES_MAX).collect() }) }
    }

    /// When it was made, by the clock of the host that made it; none if its digits are no time.
    #[must_use]
    pub fn time(&self) -> Option<Timestamp> {
        let digits = self.0.strip_prefix(CHECKPOINT_PREFIX)?.split('-').next()?;
        jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", digits)
            .ok()?
            .to_zoned(jiff::tz::TimeZone::UTC)
            .ok()
            .map(|zoned| zoned.timestamp())
    }

    /// Whether it was made for the store with this tag (see [`StoreId::tag`]).
    #[must_use]
    pub fn is_for(&self, store: &StoreId) -> bool {
        self.0.rsplit_once('-').is_some_and(|(_, random)| random.starts_with(&store.tag()))
    }
}

fn is_compact_time(text: &str) -> bool {
    let digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    bytes.len() == 16 && bytes[8] == b'T' && bytes[15] == b'Z' && digits(&bytes[..8]) && digits(&bytes[9..15])
}

/// Who a VM is: its name, and its UUID where one is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenIdentity")]
pub struct VmIdentity {
    /// What people call it.
    pub name: String,
    /// 8-4-4-4-12 lower-case hexadecimal digits, or nothing where the hypervisor has none.
    pub uuid: Option<String>,
}

/// A VM's identity as it was written, before it is checked.
#[derive(Deserialize)]
struct WrittenIdentity {
    name: String,
    uuid: Option<String>,
}

impl TryFrom<WrittenIdentity> for VmIdentity {
    type Error = NameError;

    fn try_from(written: WrittenIdentity) -> Result<Self, NameError> {
        Self::new(&written.name, written.uuid.as_deref())
    }
}

impl VmIdentity {
    /// Checks a name and a UUID from outside. A UUID of zeros means that there is none (QEMU reports that without `-uuid`).
    ///
    /// # Errors
    /// When the name cannot be a folder's name or the UUID is none.
    pub fn new(name: &str, uuid: Option<&str>) -> Result<Self, NameError> {
        let name = usable("VM", name, NAME_BYTES_MAX)?;
        let uuid = uuid.map(parse_uuid).transpose()?.filter(|uuid| uuid.bytes().any(|b| b != b'0' && b != b'-'));
        Ok(Self { name, uuid })
    }

    /// The id under which its backups form one sequence.
    #[must_use]
    pub fn id(&self) -> VmId {
        VmId(self.uuid.clone().unwrap_or_else(|| self.name.clone()))
    }
}

fn parse_uuid(text: &str) -> Result<String, NameError> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths_fit = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
    if lengths_fit && groups.concat().bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(NameError::Uuid { text: text.chars().take(NAME_BYTES_MAX).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_name_has_the_documented_form_and_reads_back() {
        let time: Timestamp = "2026-11-22T18:00:00Z".parse().unwrap();
        let store = StoreId::new("abc");
        let name = CheckpointName::make(time, &store, 0x3f9a_1c0d);
        assert_eq!(name.as_str(), format!("km1-20261122T180000Z-{}3f9a1c0d", store.tag()));
        assert_eq!(CheckpointName::parse(name.as_str()).unwrap(), name);
        assert!(name.is_for(&store));
        assert!(!name.is_for(&StoreId::new("another")));
        assert!(CheckpointName::parse("km1-20261122T180000Z-3f9a1c0d7be2").is_ok());
        assert_eq!(name.time(), Some(time));
        assert_eq!(CheckpointName::parse("km1-20269922T180000Z-3f9a1c0d7be2").unwrap().time(), None);
    }

    #[test]
    fn a_stores_tag_is_the_same_for_ever() {
        for (id, tag) in [("", "bfc1"), ("abc", "f552"), ("4076e2915403bbfc", "1e8e")] {
            assert_eq!(StoreId::new(id).tag(), tag, "{id}");
        }
    }

    #[test]
    fn people_see_the_first_eight_characters_of_an_id() {
        assert_eq!((BackupId::new("0123456789").short(), BackupId::new("012").short()), ("01234567", "012"));
    }

    #[test]
    fn only_exactly_our_form_is_ours() {
        for foreign in [
            "",
            "km1-",
            "km1-x-y",
            "km1tmp-20261122T180000Z-3f9a1c0d7be2",
            "virtnbdbackup.0",
            "km1-20261122T180000Z-3F9A1C0D7BE2",
            "km1-20261122T180000Z-3f9a1c0d7be",
            "km1-20261122T180000Z-3f9a1c0d7be21",
            "km2-20261122T180000Z-3f9a1c0d7be2",
            "km1-2026112ZT180000Z-3f9a1c0d7be2",
            "km1-20261122x180000Z-3f9a1c0d7be2",
            "km1-20261122T180000z-3f9a1c0d7be2",
            "km1-20261122T18000xZ-3f9a1c0d7be2",
            "km1-20261122T180000ZZ-3f9a1c0d7be2",
            "km1-20261122T180000-3f9a1c0d7be2",
        ] {
            assert!(CheckpointName::parse(foreign).is_err(), "{foreign}");
        }
    }

    #[test]
    fn a_vm_is_its_uuid_where_one_is_known() {
        let uuid = "6E1A8D4C-0000-4000-8000-00000000ABCD";
        assert_eq!(VmIdentity::new("web", Some(uuid)).unwrap().id().as_str(), uuid.to_lowercase());
        assert_eq!(VmIdentity::new("web", None).unwrap().id().as_str(), "web");
        let zeros = "00000000-0000-0000-0000-000000000000";
        assert_eq!(VmIdentity::new("web", Some(zeros)).unwrap().id().as_str(), "web");
    }

    /// Whatever decodes a name, of whichever kind, checks it.
    #[test]
    fn no_bad_name_can_be_decoded() {
        fn decodes<T: for<'de> Deserialize<'de>>(text: &str) -> bool {
            serde_json::from_value::<T>(text.into()).is_ok()
        }
        for bad in ["", ".", "..", "../../x", "a/b", "/etc/x", "a\0b", "a\nb", "a\u{202e}b", "a\u{1b}[2Jb"] {
            assert!(!decodes::<VmId>(bad) && !decodes::<DiskName>(bad) && !decodes::<FileName>(bad), "{bad:?}");
            assert!(!decodes::<BackupId>(bad) && !decodes::<StoreId>(bad) && !decodes::<CheckpointName>(bad), "{bad:?}");
            for identity in [serde_json::json!({"name": bad, "uuid": null}), serde_json::json!({"name": "web", "uuid": bad})] {
                assert!(serde_json::from_value::<VmIdentity>(identity).is_err(), "{bad:?}");
            }
        }
        assert!(decodes::<VmId>("web 1") && decodes::<DiskName>("vda") && decodes::<FileName>("swtpm.tpm2-00.permall"));
        assert!(decodes::<BackupId>("3f9a1c0d") && decodes::<StoreId>("3f9a1c0d"));
        assert!(decodes::<CheckpointName>("km1-20261122T180000Z-3f9a1c0d7be2") && !decodes::<CheckpointName>("km1-x"));
        assert!(serde_json::from_value::<VmIdentity>(serde_json::json!({"name": "web", "uuid": null})).is_ok());
    }

    #[test]
    fn a_name_becomes_a_path_right_in_its_folder_or_none() {
        for folder in ["/restored", "/restored/", "restored", ".", "", "a/.."] {
            assert_eq!(child(Path::new(folder), "vda.raw").unwrap(), Path::new(folder).join("vda.raw"));
            for bad in ["", ".", "..", "../x", "/etc/x", "a/../../x", "x/", "./x"] {
                assert!(child(Path::new(folder), bad).is_err(), "{folder:?} {bad:?}");
            }
        }
    }

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\nb", &"x".repeat(201)] {
            assert!(DiskName::new(bad).is_err(), "{bad:?}");
            assert!(VmIdentity::new(bad, None).is_err(), "{bad:?}");
        }
        assert!(DiskName::new("disk 1 (ü)").is_ok());
        for odd in [".x", ".km1tmp-x", "u\u{308}", "\\", "💾", "web \"1\"", "..."] {
            assert!(DiskName::new(odd).is_ok() && FileName::new(odd).is_ok(), "{odd:?} is odd and harmless");
        }
        assert!(DiskName::new(&"x".repeat(200)).is_ok());
        for bad in ["not-a-uuid", "6e1a8d4c", "zzzzzzzz-0000-4000-8000-00000000abcd", "6e1a8d4c-00004-000-8000-00000000abcd"] {
            assert!(VmIdentity::new("web", Some(bad)).is_err(), "{bad}");
        }
    }
}
