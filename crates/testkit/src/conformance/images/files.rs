//! What happens to image files that nobody but the bench has open, by QEMU's tools.

use std::path::Path;
use std::process::Command;

use super::super::{Change, Unable, bitmap_name};
use super::{Images, UNIT};
use crate::OrFail;
use crate::image::{self, Format};
use crate::process::{output, run};

impl Images {
    pub(in super::super) fn copy_file(&mut self, at: usize) {
        let to = self.fresh("copy");
        let disk = &mut self.disks[at];
        std::fs::copy(&disk.images[0].0, &to).or_fail("copying an image");
        disk.copy = Some(to);
    }

    /// What needs the VM to be off.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others need it not")]
    pub(in super::super) fn rewrite(&mut self, at: usize, change: Change) -> Result<(), Unable> {
        let file = self.disks[at].images[0].0.clone();
        match change {
            Change::Convert(with_bitmaps) => {
                let to = self.fresh("converted.qcow2");
                let cluster = format!("cluster_size={}", self.disks[at].cluster * UNIT);
                let mut command = qemu_img(&["convert", "-f", "qcow2", "-O", "qcow2", "-o", &cluster]);
                if with_bitmaps {
                    command.arg("--bitmaps");
                }
                refusable(command.arg(&file).arg(&to))?;
                self.disks[at].images = vec![(to, Format::Qcow2)];
            }
            Change::Amend => {
                for compat in ["compat=0.10", "compat=1.1"] {
                    refusable(qemu_img(&["amend", "-f", "qcow2", "-o", compat]).arg(&file))?;
                }
            }
            _ => {
                let copy = self.disks[at].copy.take().or_fail("there is no copy");
                std::fs::rename(copy, &file).or_fail("putting a copy back");
            }
        }
        Ok(())
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the others are done elsewhere")]
    pub(in super::super) fn in_file(&mut self, at: usize, change: Change) -> Result<(), Unable> {
        let (file, format) = self.disks[at].images[0].clone();
        match change {
            Change::Write(..) | Change::WriteZeros(..) | Change::Discard(..) => drop(image::io(&file, format, &[&io_words(change)])),
            Change::Resize(units) => {
                let size = (units * UNIT).to_string();
                return refusable(qemu_img(&["resize", "-q", "--shrink", "-f", format.name()]).arg(&file).arg(size));
            }
            Change::Snapshot(cluster) => self.overlay(at, cluster),
            Change::ManagedSnapshot(cluster) => self.managed_overlay(at, cluster)?,
            Change::Commit => {
                refusable(qemu_img(&["commit", "-q", "-f", format.name()]).arg(&file))?;
                self.disks[at].images.remove(0);
            }
            Change::AddBitmap(label) => return bitmap_in_file(&file, "--add", label),
            Change::RemoveBitmap(label) => return bitmap_in_file(&file, "--remove", label),
            Change::DisableBitmap(label) => return bitmap_in_file(&file, "--disable", label),
            Change::EnableBitmap(label) => return bitmap_in_file(&file, "--enable", label),
            Change::ClearBitmap(label) => return bitmap_in_file(&file, "--clear", label),
            _ => return Err(Unable::NotHere("only a running VM can do that")),
        }
        Ok(())
    }

    /// A new active image over the present one.
    pub(in super::super) fn overlay(&mut self, at: usize, cluster: u64) {
        let file = self.fresh("overlay.qcow2");
        let disk = &mut self.disks[at];
        let (backing, format) = &disk.images[0];
        let options = format!("cluster_size={}", cluster * UNIT);
        run(qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, "-F", format.name(), "-b"]).arg(backing).arg(&file));
        disk.images.insert(0, (file, Format::Qcow2));
    }

    fn managed_overlay(&mut self, at: usize, cluster: u64) -> Result<(), Unable> {
        let info = image::info(&self.disks[at].images[0].0, Format::Qcow2);
        self.overlay(at, cluster);
        let file = &self.disks[at].images[0].0;
        for bitmap in info["format-specific"]["data"]["bitmaps"].as_array().into_iter().flatten() {
            let (name, granularity) = (bitmap["name"].as_str().or_fail("a name"), bitmap["granularity"].to_string());
            refusable(qemu_img(&["bitmap", "--add", "-g", &granularity]).arg(file).arg(name))?;
        }
        Ok(())
    }
}

pub(in super::super) fn io_words(change: Change) -> String {
    let range = |start: u64, length: u64| format!("{} {}", start * UNIT, length * UNIT);
    #[expect(clippy::wildcard_enum_match_arm, reason = "only three are a guest's")]
    match change {
        // Durable, so that a kill leaves it.
        Change::Write(start, length, value) => format!("write -f -P {value} {}", range(start, length)),
        Change::WriteZeros(start, length) => format!("write -z {}", range(start, length)),
        Change::Discard(start, length) => format!("discard {}", range(start, length)),
        other => crate::fail(format_args!("{other:?} is not what a guest does")),
    }
}

fn qemu_img(arguments: &[&str]) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(arguments);
    command
}

fn refusable(command: &mut Command) -> Result<(), Unable> {
    let output = output(command);
    if output.status.success() { Ok(()) } else { Err(Unable::Refused(String::from_utf8_lossy(&output.stderr).into_owned())) }
}

fn bitmap_in_file(file: &Path, action: &str, label: &str) -> Result<(), Unable> {
    refusable(qemu_img(&["bitmap", action, "-f", "qcow2"]).arg(file).arg(bitmap_name(label)))
}
