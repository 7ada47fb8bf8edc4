//! What a disk is called decides nothing: a manifest says which images are a backup's, and whose nobody knows is not touched.

use keepmark_model::seam::{PruneRequest, Store as _};

use crate::common::noise;
use crate::shelf::{CHUNK, Lab, On, Silent};

fn prune() -> PruneRequest {
    PruneRequest { dry_run: false, unused_max_percent: 5.0, repack_max: None, delay: std::time::Duration::ZERO }
}

#[test]
fn a_disk_that_is_called_like_a_hidden_or_temporary_file_is_a_disk() {
    for name in [".x", ".km1tmp-x", ".lock", "vda.qcow2", "manifest.json"] {
        let mut lab = Lab::new();
        let mut content = noise(1, 8 * CHUNK);
        let full = lab.backup_of(name, &content, On::Nothing).unwrap();
        content[..CHUNK].fill(2);
        let next = lab.backup_of(name, &content, On::Base(&full)).unwrap();
        lab.store.prune(&prune(), &Silent).unwrap();
        lab.check(&[full.clone(), next.clone()]);
        lab.store.delete(std::slice::from_ref(&full), &Silent).unwrap();
        assert!(!lab.vm_folder().join(full.as_str()).exists(), "{name}");
        lab.check(std::slice::from_ref(&next));
        content[CHUNK..2 * CHUNK].fill(3);
        let last = lab.backup_of(name, &content, On::Base(&next)).unwrap();
        lab.store.consolidate(&last, &Silent).unwrap();
        lab.check(&[next, last]);
    }
}

/// An image that no manifest names may need what is about to go: nothing is merged or removed until somebody has looked.
#[test]
fn nothing_goes_beside_an_image_that_nobody_can_explain() {
    let mut lab = Lab::new();
    let mut content = noise(1, 8 * CHUNK);
    let full = lab.backup(&content, On::Nothing).unwrap();
    content[..CHUNK].fill(2);
    let next = lab.backup(&content, On::Base(&full)).unwrap();
    let strays = [".y.qcow2", "vdb.qcow2", "a\nb.qcow2"].map(|name| lab.vm_folder().join(next.as_str()).join(name));
    for stray in &strays {
        std::fs::copy(lab.image(&next), stray).unwrap();
        let refused = if stray == &strays[0] {
            lab.store.delete(std::slice::from_ref(&full), &Silent).unwrap_err()
        } else {
            lab.store.prune(&prune(), &Silent).unwrap_err()
        };
        assert!(refused.to_string().contains("nothing is merged or removed"), "{refused}");
        assert!(lab.store.consolidate(&next, &Silent).is_err() && lab.image(&full).exists());
        std::fs::remove_file(stray).unwrap();
    }
    lab.store.prune(&prune(), &Silent).unwrap();
    assert!(!lab.image(&full).exists());
    lab.check(&[next]);
}

#[test]
fn a_manifest_with_a_bad_name_is_damaged_and_the_others_are_not() {
    let mut lab = Lab::new();
    let content = noise(1, 8 * CHUNK);
    let [bad, good] = [(); 2].map(|()| lab.backup(&content, On::Nothing).unwrap());
    let path = lab.vm_folder().join(bad.as_str()).join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for name in ["../../x", "/etc/x", "..", "a\\nb"] {
        std::fs::write(&path, text.replace("\"vda\"", &format!("\"{name}\""))).unwrap();
        let (listed, problems) = lab.store.backups(None).unwrap();
        assert_eq!(listed.iter().map(|backup| &backup.id).collect::<Vec<_>>(), [&good]);
        assert!(problems.len() == 1 && problems[0].contains(bad.as_str()), "{problems:?}");
        assert!(lab.store.open(&bad).is_err());
    }
    let link = lab.vm_folder().join(good.as_str()).join("nvram");
    std::os::unix::fs::symlink("/etc/hostname", link).unwrap();
    let reader = lab.store.open(&good).unwrap();
    assert_eq!(reader.files(), ["manifest.json", "vm.json"]);
    assert!(reader.file("nvram").is_err() && reader.file("../../../../etc/hostname").is_err());
}
