//! Bugs of QEMU versions that would harm the guest: known, and refused before anything is touched.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::point::target::Target;
use crate::qmp::Qmp;
use crate::qmp::wire::Version;

// Until then QEMU aborts, and the guest with it, when an NBD client leaves an export whose disk is in an iothread
// (`nbd_blockdev_client_closed: Assertion qemu_in_main_thread()`; seen with 7.2.22, not with 10.0.2; repaired in between by
// letting only the main loop touch clients).
const IOTHREADS_SAFE: Version = Version { major: 9, minor: 0, micro: 0 };

/// Refuses disks in iothreads where exporting them would end in QEMU's abort.
///
/// # Errors
/// [`Error::Unsupported`] when one is.
pub(crate) fn check(qmp: &mut Qmp, targets: &[Target]) -> Result<()> {
    let version = qmp.version();
    if version >= IOTHREADS_SAFE || qmp.execute::<Vec<Value>>("query-iothreads", Value::Null)?.is_empty() {
        return Ok(());
    }
    for target in targets {
        if may_use_iothread(qmp, &target.qom_path)? {
            let what = format!(
                "export disk {} from its iothread: it would crash when the backup disconnects (use QEMU {IOTHREADS_SAFE} or newer, or the disk without iothread)",
                target.name
            );
            return Err(Error::Unsupported { version: version.to_string(), what });
        }
    }
    Ok(())
}

// A disk without the property may get one from its controller, and cannot be shown to be safe.
fn may_use_iothread(qmp: &mut Qmp, qom_path: &str) -> Result<bool> {
    match qmp.execute::<Value>("qom-get", json!({ "path": qom_path, "property": "iothread" })) {
        Ok(link) => Ok(link != ""),
        Err(error) if error.is_unreachable() => Err(error),
        Err(_) => Ok(true),
    }
}
