//! `keepmark man`: the manual pages, made from the same definitions as `--help`.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_mangen::Man;
use keepmark_model::{Failure, FailureClass};

use crate::arguments::Arguments;
use crate::exit::Outcome;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  keepmark man | man -l -
  keepmark man --to /usr/share/man/man1      one page per subcommand";

/// Print the manual page, or write all pages into a folder.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ManArguments {
    /// Folder to write one page per subcommand into
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

/// Runs it.
pub fn run(arguments: &ManArguments) -> Result<Outcome, Failure> {
    let failed = |error: std::io::Error| Failure::new(FailureClass::Failed, error);
    match &arguments.to {
        Some(folder) => clap_mangen::generate_to(Arguments::command(), folder).map_err(failed)?,
        None => {
            let mut page = Vec::new();
            Man::new(Arguments::command()).render(&mut page).map_err(failed)?;
            output::text(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(Outcome::Done)
}
