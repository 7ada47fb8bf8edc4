//! Repositories of somebody who has the key: stock restic stores manifests and trees that lead elsewhere.

use std::process::Command;

use keepmark_testkit::Restic;

use crate::lab::{Lab, seeds};
use crate::mutation::{Dice, hostile_text, mutate};

/// A repository with one honest backup, taken apart into the folder `apart`.
fn store() -> (Lab, Restic) {
    let lab = Lab::new();
    lab.keepmark.ok(&["init"]);
    lab.keepmark.ok(&["backup", &lab.vm(), "--name", "web"]);
    let restic = Restic::new(&lab.path("store"), "password");
    restic.restore("latest", &lab.path("apart"));
    (lab, restic)
}

/// Stores a hostile backup of the same VM beside the honest one.
fn attack(lab: &Lab, restic: &Restic, dice: &mut Dice) -> String {
    let apart = lab.path("apart/web");
    let file = apart.join("manifest.json");
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    (0..=dice.below(3)).for_each(|_| mutate(&mut value, dice, &lab.outside()));
    std::fs::write(&file, value.to_string()).unwrap();
    let renamed = (dice.below(3) == 0).then(|| rename_something(lab, dice));
    let mut command: Command = restic.command(&["backup", "-q", "--tag", "keepmark,vm:web,kind:full", "web"]);
    command.current_dir(lab.path("apart"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    format!("{renamed:?}, manifest {}", value.to_string().chars().take(1500).collect::<String>())
}

fn rename_something(lab: &Lab, dice: &mut Dice) -> String {
    let name = hostile_text(dice, &lab.outside()).replace(['/', '\0'], "_");
    let of = *dice.pick(&["vda", "vm.json"]);
    let done = std::fs::rename(lab.path("apart/web").join(of), lab.path("apart/web").join(&name)).is_ok();
    format!("{of} is called {name:?} ({done})")
}

#[test]
fn hostile_repositories_lead_nowhere() {
    for seed in seeds(12) {
        let mut dice = Dice::new(seed);
        let (lab, restic) = store();
        let told = attack(&lab, &restic, &mut dice);
        // What the intruder took apart is his.
        std::fs::remove_dir_all(lab.path("apart")).unwrap();
        lab.let_loose(&mut dice, &format!("seed {seed}: {told}"));
    }
}
