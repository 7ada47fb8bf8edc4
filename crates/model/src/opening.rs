//! What may be opened: the one decision that makes of an image's owner's words, and of nothing that a guest wrote, what is opened and how.
//!
//! A guest can write any header into a raw disk. So a header is a claim: it may contradict what is said and then leads to a refusal, but
//! no other file is opened, and nothing is opened for writing, because a header says so. Who is believed, and about what, is the table in
//! `docs/decisions/0011-what-may-be-opened.md`.

pub mod head;
mod refusal;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::manifest::{ManifestDisk, StoredBackup};
use crate::names::DiskName;
use head::{Backing, Head};
pub use refusal::Refusal;

/// As many images as a chain may have.
const LAYERS_MAX: usize = 256;

/// A format, by the name of QEMU's driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The bytes as the guest sees them.
    Raw,
    /// QEMU's own, the only one that holds bitmaps.
    Qcow2,
    /// Its first version.
    Qcow,
    /// QEMU's enhanced disk.
    Qed,
    /// VMware's, in one file.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Hyper-V's.
    Vhdx,
    /// Virtual PC's.
    Vpc,
    /// Parallels'.
    Parallels,
    /// Encrypted: known by its mark, never opened.
    Luks,
}

impl ImageFormat {
    const ALL: [Self; 10] =
        [Self::Raw, Self::Qcow2, Self::Qcow, Self::Qed, Self::Vmdk, Self::Vdi, Self::Vhdx, Self::Vpc, Self::Parallels, Self::Luks];

    /// QEMU's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Parallels => "parallels",
            Self::Luks => "luks",
        }
    }

    /// Whether its images hold bitmaps.
    #[must_use]
    pub fn holds_bitmaps(self) -> bool {
        self == Self::Qcow2
    }

    /// Whether QEMU would look for an image below it unless it is told that there is none.
    #[must_use]
    pub fn can_lie_on_another(self) -> bool {
        matches!(self, Self::Qcow2 | Self::Qcow | Self::Qed | Self::Vmdk)
    }

    fn words() -> String {
        Self::ALL.iter().filter(|format| **format != Self::Luks).map(|format| format.word()).collect::<Vec<_>>().join(", ")
    }

    /// What a file's name says.
    #[must_use]
    pub fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "vhd" => Some(Self::Vpc),
            "hdd" | "hds" => Some(Self::Parallels),
            word => word.parse().ok(),
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for ImageFormat {
    type Err = Refusal;

    fn from_str(word: &str) -> Result<Self, Refusal> {
        let known = Self::ALL.into_iter().find(|format| format.word() == word);
        known.ok_or_else(|| Refusal::Format { word: word.chars().take(80).collect() })
    }
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// A regular file.
    File,
    /// A block device.
    Device,
}

/// What somebody saw who looked at an image without QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// What it is.
    pub storage: Storage,
    /// What it claims.
    pub head: Head,
}

/// What an image's owner says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Words {
    /// The operator, on the command line.
    Operator {
        /// Its format, if said.
        format: Option<ImageFormat>,
        /// Whether its header may say what belongs to it.
        trust_chain: bool,
    },
    /// A domain's definition.
    Definition {
        /// Its format.
        format: ImageFormat,
        /// Where its data are, if that is said; else its header says it, as at each start.
        data_file: Option<PathBuf>,
        /// The images below it, as far as they are named.
        below: Vec<LayerWords>,
        /// Whether there is nothing below those; else the lowest one's header says what is, as libvirt has it at each start.
        is_whole: bool,
    },
}

/// What a definition says of an image below a disk's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerWords {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
}

impl Words {
    /// An operator's who says nothing but the image's name.
    #[must_use]
    pub fn none() -> Self {
        Self::Operator { format: None, trust_chain: false }
    }
}

/// An image about which something is to be decided.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// How it is called.
    pub disk: &'a DiskName,
    /// Its own name, by which its owner calls it.
    pub named: &'a Path,
    /// Where it is now: elsewhere while it is half reverted.
    pub at: &'a Path,
    /// What its owner says.
    pub words: &'a Words,
    /// The backups of its VM in this store, oldest first.
    pub history: &'a [StoredBackup],
}

/// What may be opened, and how. Only this module makes one, and whoever opens an image takes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    layers: Vec<PermittedImage>,
    notes: Vec<String>,
}

/// One image that may be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermittedImage {
    /// Where it is.
    pub path: PathBuf,
    /// As what it is opened.
    pub format: ImageFormat,
    /// What it is.
    pub storage: Storage,
    /// Where its data are, and what that is, if not in itself.
    pub data_file: Option<(PathBuf, Storage)>,
}

impl Permit {
    /// An image of ours: it was made just now, and its format is the one that it was made in.
    #[must_use]
    pub fn of_new(path: &Path, format: ImageFormat, storage: Storage) -> Self {
        Self { layers: vec![PermittedImage { path: path.to_owned(), format, data_file: None, storage }], notes: Vec::new() }
    }

    /// A chain of an image store: qcow2 files, each named by the store, which has read their headers itself.
    #[must_use]
    pub fn of_store(chain: &[PathBuf]) -> Self {
        let layer =
            |path: &PathBuf| PermittedImage { path: path.clone(), format: ImageFormat::Qcow2, data_file: None, storage: Storage::File };
        Self { layers: chain.iter().map(layer).collect(), notes: Vec::new() }
    }

    /// The images, the active one first.
    #[must_use]
    pub fn layers(&self) -> &[PermittedImage] {
        &self.layers
    }

    /// What is worth saying about it.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether a layer may be opened for writing: the active one, and for bitmaps only where the format has a place for them.
    #[must_use]
    pub fn is_writable(&self, layer: usize, purpose: Purpose) -> bool {
        let holds_bitmaps = self.layers.get(layer).is_some_and(|image| image.format.holds_bitmaps());
        match purpose {
            Purpose::Read => false,
            Purpose::Mark => layer == 0 && holds_bitmaps,
            Purpose::Write => layer == 0,
        }
    }
}

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Its content is read.
    Read,
    /// Its content is read, and bitmaps are written.
    Mark,
    /// Its content is written.
    Write,
}

/// Decides what may be opened of a disk. `look` tells of a path; it is asked of the image, and of others only when they may be opened.
///
/// # Errors
/// When it may not be opened, or `look` fails.
pub fn permit<E: From<Refusal>>(asked: &Asked<'_>, mut look: impl FnMut(&Path) -> Result<Look, E>) -> Result<Permit, E> {
    let seen = look(asked.at)?;
    let known = known(asked);
    let (format, notes) = format(asked, known, &seen)?;
    let mut layers = vec![layer(asked, asked.named, asked.at, format, &seen, &mut look)?];
    let mut below = next(asked, known, asked.named, format, &seen.head, 0)?;
    while let Some(LayerWords { path, format }) = below {
        if layers.len() >= LAYERS_MAX || path == asked.at || layers.iter().any(|layer| layer.path == path) {
            return Err(Refusal::Endless { image: asked.named.to_owned() }.into());
        }
        let seen = look(&path)?;
        layers.push(layer(asked, &path, &path, format, &seen, &mut look)?);
        below = next(asked, known, &path, format, &seen.head, layers.len() - 1)?;
    }
    Ok(Permit { layers, notes })
}

/// The newest backup's word of this image; else of this disk, which was elsewhere then.
fn known<'a>(asked: &Asked<'a>) -> Option<&'a ManifestDisk> {
    let disks = || asked.history.iter().rev().flat_map(|backup| &backup.manifest.disks);
    let is_here = |disk: &&ManifestDisk| is_at(&disk.image, asked.named);
    disks().find(is_here).or_else(|| disks().find(|disk| disk.name == *asked.disk))
}

fn is_at(image: &str, path: &Path) -> bool {
    Path::new(image) == path
}

fn format(asked: &Asked<'_>, known: Option<&ManifestDisk>, seen: &Look) -> Result<(ImageFormat, Vec<String>), Refusal> {
    let said = match asked.words {
        Words::Definition { format, .. } => Some((*format, "its definition".to_owned())),
        Words::Operator { format, .. } => format.map(|format| (format, "--format".to_owned())),
    };
    if let Some((format, by)) = said {
        return like(asked.named, format, &by, &seen.head).map(|format| (format, Vec::new()));
    }
    match known.map(|disk| (disk.format.parse(), is_at(&disk.image, asked.named))) {
        Some((Ok(format), true)) => {
            like(asked.named, format, "the last backup", &seen.head).map(|format| (format, note(format, &seen.head)))
        }
        Some((Ok(ImageFormat::Raw), false)) => {
            Ok(clear(asked.named, seen)
                .map_or_else(|_| (ImageFormat::Raw, note(ImageFormat::Raw, &seen.head)), |format| (format, Vec::new())))
        }
        Some(_) | None => clear(asked.named, seen).map(|format| (format, Vec::new())),
    }
}

/// What is raw may begin with anything.
fn like(image: &Path, said: ImageFormat, by: &str, head: &Head) -> Result<ImageFormat, Refusal> {
    // A fixed VHD has its mark at its end.
    let fits = matches!(said, ImageFormat::Raw | ImageFormat::Vpc) || head.format == Some(said);
    if fits { Ok(said) } else { Err(Refusal::Unlike { image: image.to_owned(), said, by: by.to_owned() }) }
}

fn note(format: ImageFormat, head: &Head) -> Vec<String> {
    let marked = head.format.filter(|seen| *seen != format && format == ImageFormat::Raw);
    marked.map(|seen| format!("it is raw, as in the last backup, although it begins like {seen}")).into_iter().collect()
}

/// The format where name and content agree.
fn clear(image: &Path, seen: &Look) -> Result<ImageFormat, Refusal> {
    let named = ImageFormat::of_name(image).filter(|_| seen.storage == Storage::File);
    let is_raw = named == Some(ImageFormat::Raw) || seen.storage == Storage::Device;
    match (named, seen.head.format) {
        (None | Some(ImageFormat::Raw), None) => Ok(ImageFormat::Raw),
        (Some(said), seen) if seen == Some(said) => Ok(said),
        // Guests encrypt whole disks; read as raw, it leads nowhere.
        (_, Some(ImageFormat::Luks)) if is_raw => Ok(ImageFormat::Raw),
        (_, Some(seen)) => Err(Refusal::Unclear { image: image.to_owned(), seen }),
        (Some(said), None) => Err(Refusal::Unlike { image: image.to_owned(), said, by: "its name".into() }),
    }
}

fn layer<E: From<Refusal>>(
    asked: &Asked<'_>,
    named: &Path,
    at: &Path,
    format: ImageFormat,
    seen: &Look,
    look: &mut impl FnMut(&Path) -> Result<Look, E>,
) -> Result<PermittedImage, E> {
    let data_file = if format == ImageFormat::Raw { None } else { data_file(asked, named, format, &seen.head)? };
    // What it begins with does not matter, but that it is there, and a file.
    let data_file = data_file.map(|path| look(&path).map(|seen| (path, seen.storage))).transpose()?;
    Ok(PermittedImage { path: at.to_owned(), format, storage: seen.storage, data_file })
}

fn data_file(asked: &Asked<'_>, image: &Path, format: ImageFormat, head: &Head) -> Result<Option<PathBuf>, Refusal> {
    like(image, format, "what lies on it", head)?;
    if head.encrypted || format == ImageFormat::Luks {
        return Err(Refusal::Encrypted { image: image.to_owned() });
    }
    if let Some(problem) = &head.problem {
        return Err(Refusal::Problem { image: image.to_owned(), problem: problem.clone() });
    }
    let by_header = head.data_file.as_ref().map(|name| resolve(image, name)).transpose();
    if let Words::Definition { data_file: Some(said), .. } = asked.words
        && image == asked.named
    {
        let problem =
            || Refusal::Problem { image: image.to_owned(), problem: "its definition has its data elsewhere, its header has not".into() };
        return if head.data_file.is_some() { Ok(Some(said.clone())) } else { Err(problem()) };
    }
    let Some(data) = by_header? else { return Ok(None) };
    let is_said = matches!(asked.words, Words::Operator { trust_chain: true, .. } | Words::Definition { .. });
    if is_said { Ok(Some(data)) } else { Err(Refusal::DataFile { image: image.to_owned(), data }) }
}

/// What lies below an image, the one at this place of its chain.
fn next(
    asked: &Asked<'_>,
    known: Option<&ManifestDisk>,
    image: &Path,
    format: ImageFormat,
    head: &Head,
    place: usize,
) -> Result<Option<LayerWords>, Refusal> {
    let by_header = || if format == ImageFormat::Raw { Ok(None) } else { head.backing.as_ref().map(|name| named(image, name)).transpose() };
    match asked.words {
        Words::Definition { below, is_whole, .. } => match below.get(place) {
            Some(_) if !format.can_lie_on_another() => {
                Err(Refusal::Problem { image: image.to_owned(), problem: format!("its definition lays it on another, and it is {format}") })
            }
            Some(said) => Ok(Some(said.clone())),
            None if *is_whole => Ok(None),
            None => by_header(),
        },
        Words::Operator { trust_chain: true, .. } => by_header(),
        Words::Operator { trust_chain: false, .. } => match by_header()? {
            Some(below) if !known.is_some_and(|disk| had(disk, &below.path)) => {
                Err(Refusal::Chain { image: image.to_owned(), below: below.path })
            }
            below => Ok(below),
        },
    }
}

fn had(disk: &ManifestDisk, image: &Path) -> bool {
    is_at(&disk.image, image) || disk.backing.iter().any(|below| is_at(below, image))
}

fn named(image: &Path, backing: &Backing) -> Result<LayerWords, Refusal> {
    let path = resolve(image, &backing.name)?;
    match &backing.format {
        Some(word) => Ok(LayerWords { path, format: word.parse()? }),
        None => Err(Refusal::NoFormat { image: image.to_owned(), below: backing.name.clone() }),
    }
}

/// A name in a header, as QEMU reads it: relative to the image's folder. A colon before the first slash makes it a protocol.
fn resolve(image: &Path, name: &str) -> Result<PathBuf, Refusal> {
    let is_protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
    if is_protocol || name.is_empty() {
        return Err(Refusal::NoFile { image: image.to_owned(), name: name.chars().filter(|c| !c.is_control()).take(200).collect() });
    }
    Ok(image.parent().unwrap_or(Path::new("/")).join(name))
}

#[cfg(test)]
mod tests;
