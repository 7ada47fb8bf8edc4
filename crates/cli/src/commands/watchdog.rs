//! `keepmark internal-watchdog`: the process that resumes and thaws a guest when keepmark dies while it holds it.

use std::ffi::OsString;

use clap::Args;
use keepmark_model::Failure;

use crate::exit::Outcome;

/// Used by keepmark itself.
#[derive(Debug, Args)]
pub struct WatchdogArguments {
    /// What keepmark hands over.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// Runs it.
pub fn run(arguments: &WatchdogArguments) -> Result<Outcome, Failure> {
    #[cfg(feature = "libvirt")]
    if keepmark_libvirt::watchdog::is_for_libvirt(&arguments.arguments) {
        keepmark_libvirt::watchdog::run(&arguments.arguments, std::io::stdin(), &mut std::io::stdout())?;
        return Ok(Outcome::Done);
    }
    keepmark_qemu::watchdog::run(&arguments.arguments, std::io::stdin(), &mut std::io::stdout())?;
    Ok(Outcome::Done)
}
