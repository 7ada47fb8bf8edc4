//! The keepmark command: parses the command line, runs one subcommand, and turns its outcome into an exit code.

mod arguments;
mod calendar;
mod commands;
mod config;
mod context;
mod define;
mod dependencies;
mod exit;
mod fleet;
mod hypervisor;
mod output;
mod password;
mod retention;
mod screen;
mod signals;
mod store;
mod table;
mod text;
mod vm;

use std::process::ExitCode;

use clap::Parser;

use arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit::code(commands::run(arguments))
}
