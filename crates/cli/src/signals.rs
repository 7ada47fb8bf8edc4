//! Ctrl-C and its kin set a flag that long work asks; a second one ends the program at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use keepmark_model::{Failure, FailureClass};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that becomes true when the user or the system asks to stop.
///
/// # Errors
/// When the system refuses the handlers.
pub fn interrupted_flag() -> Result<Arc<AtomicBool>, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let registered = flag::register_conditional_default(signal, Arc::clone(&interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(&interrupted)));
        registered.map_err(|error| Failure::new(FailureClass::Failed, error))?;
    }
    Ok(interrupted)
}
