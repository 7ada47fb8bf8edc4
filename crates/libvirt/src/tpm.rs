//! The state of an emulated TPM: read for a backup where that is safe.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use keepmark_model::seam::{Definition, SavedFile};

use crate::saved::read;
use crate::xml::references::{TpmSource, TpmState};

/// Begins the name of each saved file of the state; the rest is swtpm's own name of it.
pub(crate) const PREFIX: &str = "swtpm.";

// swtpm's files are a few tens of KiB.
const FILE_BYTES_MAX: u64 = 8 << 20;
// What the TPM keeps without power. Others are locks, halves of what is being written, and what a TPM that was moved while it ran had in memory.
const STATE_SUFFIX: &str = ".permall";

/// Where libvirt keeps the state of a domain's TPM, below its folder for all of them.
pub(crate) fn state_folder(uuid: &str, version: Option<&str>) -> PathBuf {
    Path::new(uuid).join(if version == Some("1.2") { "tpm1.2" } else { "tpm2" })
}

/// Adds the state to what is saved. In a folder each file is replaced as a whole by swtpm, so that it can be read at any time; a
/// single file is written in place, so that it can be read while the domain is off. State that a secret of libvirt's encrypts stays encrypted.
pub(crate) fn save(state: &TpmState, uuid: &str, swtpm: &Path, is_active: bool, saved: &mut Definition) {
    let found = match &state.source {
        None => folder(&swtpm.join(state_folder(uuid, state.version.as_deref()))),
        Some(TpmSource::Dir(path)) => folder(Path::new(path)),
        Some(TpmSource::File(path)) if is_active => Err(format!("{path} is written in place while the VM runs")),
        Some(TpmSource::File(path)) => one(Path::new(path)).map(|file| vec![file]),
    };
    match found {
        // A domain that never ran has none yet.
        Ok(files) if files.is_empty() && !is_active => {}
        Ok(files) if files.is_empty() => {
            saved.findings.push("the state of the TPM is not in the backup: there is none where libvirt keeps it".into())
        }
        Ok(files) => saved.files.extend(files),
        Err(why) => saved.findings.push(format!("the state of the TPM is not in the backup: {why}")),
    }
}

fn folder(path: &Path) -> Result<Vec<SavedFile>, String> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| format!("cannot read {}: {error}", path.display()))?,
    };
    let is_state = |path: &PathBuf| path.to_string_lossy().ends_with(STATE_SUFFIX);
    entries.flatten().map(|entry| entry.path()).filter(is_state).map(|path| one(&path)).collect()
}

fn one(path: &Path) -> Result<SavedFile, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(SavedFile { name: format!("{PREFIX}{name}"), content: read(path, FILE_BYTES_MAX)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(source: Option<TpmSource>, swtpm: &Path, is_active: bool) -> (Vec<String>, usize) {
        let mut saved = Definition::default();
        save(&TpmState { version: Some("2.0".into()), source }, "u", swtpm, is_active, &mut saved);
        (saved.files.into_iter().map(|file| file.name).collect(), saved.findings.len())
    }

    #[test]
    fn state_is_read_where_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("u/tpm2");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!((saved(None, dir.path(), false), saved(None, dir.path(), true)), ((vec![], 0), (vec![], 1)));
        for name in ["tpm2-00.permall", ".lock", "TMP2-00.permall.tmp", "tpm2-00.volatilestate"] {
            std::fs::write(folder.join(name), "state").unwrap();
        }
        let names = vec!["swtpm.tpm2-00.permall".to_owned()];
        assert_eq!(saved(None, dir.path(), true), (names.clone(), 0));
        assert_eq!(saved(Some(TpmSource::Dir(folder.to_string_lossy().into())), dir.path(), true), (names.clone(), 0));
        let file = || Some(TpmSource::File(folder.join("tpm2-00.permall").to_string_lossy().into()));
        assert_eq!((saved(file(), dir.path(), false), saved(file(), dir.path(), true)), ((names, 0), (vec![], 1)));
        assert_eq!(saved(Some(TpmSource::File("/nonexistent".into())), dir.path(), false), (vec![], 1));
    }
}
