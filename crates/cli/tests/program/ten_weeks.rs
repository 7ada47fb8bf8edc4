//! Ten weeks of the default scheme on a real image, a day in about a second, in both kinds of store: the kind of each day, what retention
//! keeps, and that what is listed restores. The program's clock is set by libfaketime.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::ToSpan;
use jiff::civil::{Date, date};
use keepmark_testkit::Keepmark;
use keepmark_testkit::image::{self, Format};

use crate::lab::{Lab, MIB, id, image_vm, text};

/// A first Monday.
const FIRST: Date = date(2026, 1, 5);
/// Day by day; the Monday of the third week has no run, so that Tuesday makes its differential.
const DRAWN: &str = "FIIIIIIDIIIIII.DIIIIIDIIIIIIFIIIIIIDIIIIIIDIIIIIIDIIIIIIFIIIIIIDIIIIII";
/// Days and weeks that are kept.
const KEEP: [(usize, &str); 2] = [(5, "%Y-%m-%d"), (3, "%G-%V")];

/// The program on a day at four in the morning, UTC.
fn on(keepmark: &Keepmark, day: Date) -> Keepmark {
    let folders = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let library = folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|path| path.exists()).unwrap();
    let clock = format!("@{day} 04:00:00");
    keepmark.clone().env("LD_PRELOAD", text(&library)).env("FAKETIME", &clock).env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("TZ", "UTC")
}

/// What the rules keep of these days, said plainly: the newest of so many days and weeks, the oldest where there are not so many, the last
/// one and the last that read everything.
fn kept(days: &BTreeMap<Date, char>) -> BTreeSet<Date> {
    let mut kept: BTreeSet<Date> = days.keys().next_back().into_iter().copied().collect();
    kept.extend(days.iter().rev().find(|(_, letter)| **letter == 'F').map(|(day, _)| *day));
    for (count, form) in KEEP {
        let mut periods = Vec::new();
        for day in days.keys().rev() {
            let period = day.strftime(form).to_string();
            if periods.len() < count && !periods.contains(&period) {
                periods.push(period);
                kept.insert(*day);
            }
        }
        kept.extend(days.keys().next().filter(|_| periods.len() < count));
    }
    kept
}

fn compare(keepmark: &Keepmark, lab: &Lab, backup: &str, truth: &Path) {
    let to = lab.path("restored");
    keepmark.ok(&["restore", backup, "--to", text(&to)]);
    image::assert_same(&to.join("vda.raw"), Format::Raw, truth, Format::Qcow2);
    std::fs::remove_dir_all(to).unwrap();
}

fn ten_weeks(lab: &Lab, keepmark: &Keepmark) {
    let file = lab.qcow2("vda", 4 * MIB);
    let vm = image_vm("vda", &file);
    let mut alive: BTreeMap<Date, char> = BTreeMap::new();
    let mut truths: BTreeMap<Date, (String, PathBuf)> = BTreeMap::new();
    for (number, letter) in DRAWN.chars().enumerate() {
        let day = FIRST + i64::try_from(number).unwrap().days();
        image::fill(&file, Format::Qcow2, u8::try_from(number + 1).unwrap(), (number as u64 * 5 % 60) * 65_536, 65_536);
        let keepmark = on(keepmark, day);
        if letter != '.' {
            let finished = keepmark.backup(&vm, &["--name", "web"]);
            assert_eq!(finished["kind"].as_str().unwrap().to_uppercase().chars().next(), Some(letter), "on {day}: {finished}");
            let truth = lab.path(&format!("truth-{day}"));
            std::fs::copy(&file, &truth).unwrap();
            compare(&keepmark, lab, id(&finished), &truth);
            alive.insert(day, letter);
            truths.insert(day, (id(&finished).to_owned(), truth));
        }
        keepmark.ok(&["forget", "web", "--keep-daily", "5", "--keep-weekly", "3"]);
        let kept = kept(&alive);
        alive.retain(|day, _| kept.contains(day));
        let listed: Vec<String> =
            keepmark.ok(&["list", "web", "--json"]).json().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(listed, alive.keys().map(|day| truths[day].0.clone()).collect::<Vec<_>>(), "on {day}");
        if number % 7 == 6 {
            alive.keys().for_each(|day| compare(&keepmark, lab, &truths[day].0, &truths[day].1));
        }
    }
    let drawn = keepmark.ok(&["list", "web"]).stdout;
    let letters: Vec<String> = alive.values().map(char::to_string).collect();
    assert!(drawn.lines().next().unwrap().ends_with(&format!(": {}", letters.join(" "))), "{drawn}");
    keepmark.ok(&["verify", "--read-data"]);
}

#[test]
fn ten_weeks_in_a_repository() {
    let lab = Lab::new();
    ten_weeks(&lab, &lab.keepmark);
    lab.restic().check();
}

#[test]
fn ten_weeks_in_an_image_store() {
    let lab = Lab::new();
    let keepmark = lab.keepmark.clone().store(Path::new(&format!("images:{}", text(&lab.path("images")))));
    keepmark.ok(&["init"]);
    ten_weeks(&lab, &keepmark);
}
