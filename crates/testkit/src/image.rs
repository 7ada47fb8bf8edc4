//! Disk images: made, filled, read whole and compared by QEMU's own tools.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::process::{output, run};
use crate::{OrFail, fail};

/// How an image file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The guest's bytes as they are.
    Raw,
    /// QEMU's format, the only one that keeps bitmaps.
    Qcow2,
}

impl Format {
    /// QEMU's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

fn qemu_img() -> Command {
    Command::new("qemu-img")
}

/// Makes an empty image of `size` bytes.
pub fn create(path: &Path, format: Format, size: u64) {
    run(qemu_img().args(["create", "-q", "-f", format.name()]).arg(path).arg(size.to_string()));
}

/// The same with creation options, e.g. `compat=0.10` or `cluster_size=2M`.
pub fn create_with(path: &Path, format: Format, size: u64, options: &str) {
    run(qemu_img().args(["create", "-q", "-f", format.name(), "-o", options]).arg(path).arg(size.to_string()));
}

/// Makes a qcow2 overlay over `backing`.
pub fn create_overlay(path: &Path, backing: &Path, backing_format: Format) {
    run(qemu_img().args(["create", "-q", "-f", "qcow2", "-F", backing_format.name(), "-b"]).arg(backing).arg(path));
}

/// Makes a sparse file of `size` bytes.
pub fn sparse(path: &Path, size: u64) {
    File::create(path).and_then(|file| file.set_len(size)).or_fail(format_args!("making {}", path.display()));
}

/// Runs qemu-io `commands` on an image that nobody has open; a failed or mismatching command ends the test.
#[track_caller]
pub fn io(path: &Path, format: Format, commands: &[&str]) -> String {
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-d", "unmap", "-f", format.name()]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    let text = run(qemu_io.arg(path));
    check_io(&text);
    text
}

/// qemu-io says some failures only in its output.
#[track_caller]
pub(crate) fn check_io(text: &str) {
    if ["failed", "error", "Pattern verification", "Permission", "Invalid"].iter().any(|bad| text.contains(bad)) {
        fail(format_args!("qemu-io: {text}"));
    }
}

/// Writes `length` bytes of `pattern` at `offset`, both in bytes.
#[track_caller]
pub fn fill(path: &Path, format: Format, pattern: u8, offset: u64, length: u64) {
    // qemu-io takes less than 2 GiB at once.
    let step = 1 << 30;
    let mut done = 0;
    while done < length {
        let part = step.min(length - done);
        io(path, format, &[&format!("write -P {pattern} {} {part}", offset + done)]);
        done += part;
    }
}

/// Writes `length` incompressible bytes, the same for the same `seed`, at `offset`.
#[track_caller]
pub fn fill_random(path: &Path, format: Format, seed: u64, offset: u64, length: usize) {
    let source = tempfile::NamedTempFile::new_in(folder_of(path)).or_fail("making a pattern file");
    std::fs::write(source.path(), random_bytes(seed, length)).or_fail("writing a pattern file");
    io(path, format, &[&format!("write -s {} {offset} {length}", source.path().display())]);
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `length` incompressible bytes that depend on `seed` alone (xorshift64*).
#[must_use]
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Makes an image of `size` bytes with an ext4 file system, holding a copy of folder `from` if given.
pub fn mkfs_ext4(path: &Path, format: Format, size: u64, from: Option<&Path>) {
    let raw = path.with_extension("ext4.tmp");
    sparse(&raw, size);
    // Debian keeps it in /sbin, which an ordinary user's PATH lacks.
    let mut mkfs = Command::new("/sbin/mkfs.ext4");
    mkfs.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]);
    if let Some(folder) = from {
        mkfs.arg("-d").arg(folder);
    }
    run(mkfs.arg(&raw));
    convert(&raw, Format::Raw, path, format);
    std::fs::remove_file(&raw).or_fail("removing the temporary file system");
}

/// Copies the guest's bytes of `from` into a new image `to`; holes stay holes.
#[track_caller]
pub fn convert(from: &Path, from_format: Format, to: &Path, to_format: Format) {
    run(qemu_img().args(["convert", "-f", from_format.name(), "-O", to_format.name()]).arg(from).arg(to));
}

/// Copies the guest's bytes of an image that a QEMU has open, which must be paused and have written out everything.
#[track_caller]
pub(crate) fn convert_shared(from: &Path, format: Format, to: &Path) {
    run(qemu_img().args(["convert", "-U", "-f", format.name(), "-O", "raw"]).arg(from).arg(to));
}

/// SHA-256 (hexadecimal) of all the guest's bytes.
#[must_use]
#[track_caller]
pub fn sha256_of_disk(path: &Path, format: Format) -> String {
    let raw = tempfile::NamedTempFile::new_in(folder_of(path)).or_fail("making a file for the disk's bytes");
    convert(path, format, raw.path(), Format::Raw);
    sha256_of_file(raw.path())
}

/// SHA-256 (hexadecimal) of a file.
#[must_use]
#[track_caller]
pub fn sha256_of_file(path: &Path) -> String {
    let text = run(Command::new("sha256sum").arg("--").arg(path));
    text.split_whitespace().next().or_fail("sha256sum printed nothing").to_owned()
}

/// Fails the test unless both are of one size and hold the same guest's bytes.
#[track_caller]
pub fn assert_same(a: &Path, a_format: Format, b: &Path, b_format: Format) {
    let sizes = (virtual_size(a, a_format), virtual_size(b, b_format));
    if sizes.0 != sizes.1 {
        fail(format_args!("{} has {} bytes, {} has {}", a.display(), sizes.0, b.display(), sizes.1));
    }
    if let Some(difference) = difference(a, a_format, b, b_format) {
        fail(format_args!("{} and {} differ: {difference}", a.display(), b.display()));
    }
}

/// Where two images' guest bytes first differ, in QEMU's words; none if they are equal.
#[must_use]
#[track_caller]
pub fn difference(a: &Path, a_format: Format, b: &Path, b_format: Format) -> Option<String> {
    let mut compare = qemu_img();
    compare.args(["compare", "-f", a_format.name(), "-F", b_format.name()]).arg(a).arg(b);
    let output = output(&mut compare);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => None,
        Some(1) => Some(text),
        _ => fail(format_args!("{compare:?}: {text}{}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// What `qemu-img info` says; also of an image that is in use (then of the file as it is, not of what QEMU knows).
#[must_use]
#[track_caller]
pub fn info(path: &Path, format: Format) -> Value {
    let text = run(qemu_img().args(["info", "-U", "--output=json", "-f", format.name()]).arg(path));
    serde_json::from_str(&text).or_fail("reading qemu-img info")
}

/// Whether the image is there and nobody has it open for writing.
#[must_use]
pub fn is_free(path: &Path, format: Format) -> bool {
    let info = qemu_img().args(["info", "-f", format.name()]).arg(path).output();
    info.is_ok_and(|output| output.status.success())
}

/// Makes the disk larger.
#[track_caller]
pub fn grow(path: &Path, format: Format, size: u64) {
    run(qemu_img().args(["resize", "-q", "-f", format.name()]).arg(path).arg(size.to_string()));
}

/// The guest's size in bytes.
#[must_use]
#[track_caller]
pub fn virtual_size(path: &Path, format: Format) -> u64 {
    info(path, format)["virtual-size"].as_u64().or_fail("qemu-img info without a size")
}

/// The names of the bitmaps stored in a qcow2 file.
#[must_use]
#[track_caller]
pub fn bitmaps(path: &Path) -> Vec<String> {
    let info = info(path, Format::Qcow2);
    let stored = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    stored.iter().filter_map(|bitmap| bitmap["name"].as_str().map(str::to_owned)).collect()
}
