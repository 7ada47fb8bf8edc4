//! Whether a file system answers on which QEMU has a file of ours.
//!
//! While QEMU waits for one, every change of QEMU's graph of nodes waits too, and the guest with it; so does the opening and closing of an
//! image on it. So it is asked before.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keepmark_model::seam;

use crate::error::{Error, Result};

// A file system that has not taken a change of a folder's time by then is stuck.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const ANSWER_CHECK: Duration = Duration::from_millis(1);

/// Asks the file system of a folder for a sign of life, and waits a few seconds for one.
///
/// Another process asks, since one that waits for such a file system cannot even be killed.
///
/// # Errors
/// [`Error::Stuck`] when none comes.
pub fn must_answer(folder: &Path) -> Result<()> {
    let mut child = ask(folder)?;
    let end = Instant::now() + ANSWER_MAX;
    while Instant::now() < end {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(ANSWER_CHECK),
            // Whether it may change the folder does not matter.
            Ok(Some(_)) | Err(_) => return Ok(()),
        }
    }
    Err(Error::Stuck { folder: folder.to_owned() })
}

/// Waits until it answers, as long as `goes_on` says nothing else.
///
/// # Errors
/// What `goes_on` returned, or that nobody can be found to ask.
pub fn wait(folder: &Path, goes_on: &mut dyn FnMut() -> seam::Result<()>) -> seam::Result<()> {
    let mut child = ask(folder)?;
    while matches!(child.try_wait(), Ok(None)) {
        goes_on()?;
        std::thread::sleep(ANSWER_CHECK);
    }
    Ok(())
}

fn ask(folder: &Path) -> Result<Child> {
    let mut command = Command::new("touch");
    command.args(["-c", "--"]).arg(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|source| Error::Spawn { program: "touch".into(), source })
}
