//! The subcommands, one file each.

pub mod adopt_copy;
pub mod backup;
pub mod checkpoint;
pub mod completion;
pub mod consolidate;
pub mod delete;
pub mod doctor;
pub mod forget;
pub mod init;
pub mod list;
pub mod man;
pub mod pin;
pub mod plan;
pub mod prune;
pub mod restore;
pub mod revert;
pub mod scheme;
pub mod show;
pub mod status;
pub mod verify;
pub mod watchdog;

use keepmark_model::Failure;

use crate::arguments::{Arguments, Command};
use crate::context::Context;
use crate::exit::Outcome;

/// Runs the subcommand that was asked for.
///
/// # Errors
/// When it fails.
pub fn run(arguments: Arguments) -> Result<Outcome, Failure> {
    let context = || Context::new(arguments.global);
    match arguments.command {
        Command::Init(arguments) => init::run(&context()?, &arguments),
        Command::AdoptCopy(arguments) => adopt_copy::run(&context()?, &arguments),
        Command::Backup(arguments) => backup::run(&context()?, &arguments),
        Command::Plan(arguments) => plan::run(&context()?, &arguments),
        Command::List(arguments) => list::run(&context()?, &arguments),
        Command::Status(arguments) => status::run(&context()?, &arguments),
        Command::Forget(arguments) => forget::run(&context()?, &arguments),
        Command::Delete(arguments) => delete::run(&context()?, &arguments),
        Command::Pin(arguments) => pin::run(&context()?, &arguments, true),
        Command::Unpin(arguments) => pin::run(&context()?, &arguments, false),
        Command::Scheme(arguments) => scheme::run(&context()?, &arguments),
        Command::Show(arguments) => show::run(&context()?, &arguments),
        Command::Restore(arguments) => restore::run(&context()?, &arguments),
        Command::Revert(arguments) => revert::run(&context()?, &arguments),
        Command::Verify(arguments) => verify::run(&context()?, &arguments),
        Command::Consolidate(arguments) => consolidate::run(&context()?, &arguments),
        Command::Prune(arguments) => prune::run(&context()?, &arguments),
        Command::Checkpoint(arguments) => checkpoint::run(&context()?, &arguments),
        Command::Doctor(arguments) => doctor::run(&context()?, &arguments),
        Command::Completion(arguments) => completion::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
        Command::Watchdog(arguments) => watchdog::run(&arguments),
    }
}
