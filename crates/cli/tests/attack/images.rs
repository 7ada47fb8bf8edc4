//! Image stores of somebody who can write their folder: manifests, names, links, pipes, and headers that lead elsewhere.

use std::path::{Path, PathBuf};

use keepmark_testkit::damage;
use keepmark_testkit::image;

use crate::lab::{Lab, seeds};
use crate::mutation::{Dice, hostile_text, mutate};

/// An image store with two backups.
fn store() -> Lab {
    let lab = Lab::new();
    lab.keepmark.ok(&["init", &format!("images:{}", lab.path("store").display())]);
    for round in 0..2 {
        lab.keepmark.ok(&["backup", &lab.vm(), "--name", "web"]);
        image::io(&lab.disk(), image::Format::Qcow2, &[&format!("write -P {} 2M 64k", round + 1)]);
    }
    lab
}

fn attack(lab: &Lab, dice: &mut Dice) -> String {
    let files = damage::files(&lab.path("store"));
    let file = dice.pick(&files).clone();
    let name = hostile_text(dice, &lab.outside());
    match dice.below(8) {
        0..=3 => manifest(lab, dice, &files),
        4 => {
            std::fs::remove_file(&file).unwrap();
            let target = dice.pick(&["/dev/zero", "/etc/passwd", "outside/canary"]).replace("outside", &lab.outside());
            std::os::unix::fs::symlink(&target, &file).unwrap();
            format!("{} is a link to {target}", file.display())
        }
        5 => {
            std::fs::remove_file(&file).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0)
                .unwrap();
            format!("{} is a pipe", file.display())
        }
        6 => {
            let renamed = file.with_file_name(name.replace(['/', '\0'], "_"));
            let done = std::fs::rename(&file, &renamed).is_ok();
            format!("{} is called {} ({done})", file.display(), renamed.display())
        }
        _ => backing(dice, &files, &name),
    }
}

fn manifest(lab: &Lab, dice: &mut Dice, files: &[PathBuf]) -> String {
    let json: Vec<&PathBuf> = files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "json")).collect();
    let file: &Path = dice.pick::<&PathBuf>(&json);
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    (0..=dice.below(3)).for_each(|_| mutate(&mut value, dice, &lab.outside()));
    damage::replace(file, value.to_string().as_bytes());
    format!("{} is {}", file.display(), value.to_string().chars().take(1500).collect::<String>())
}

/// An image's header names another backing file.
fn backing(dice: &mut Dice, files: &[PathBuf], name: &str) -> String {
    let images: Vec<&PathBuf> = files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "qcow2")).collect();
    let file: &Path = dice.pick::<&PathBuf>(&images);
    let mut rebase = std::process::Command::new("qemu-img");
    rebase.args(["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", name.trim_matches('\0')]).arg(file);
    let done = rebase.output().is_ok_and(|output| output.status.success());
    format!("{} lies on {name:?} ({done})", file.display())
}

#[test]
fn hostile_image_stores_lead_nowhere() {
    for seed in seeds(12) {
        let mut dice = Dice::new(seed);
        let lab = store();
        let told = attack(&lab, &mut dice);
        lab.let_loose(&mut dice, &format!("seed {seed}: {told}"));
    }
}
