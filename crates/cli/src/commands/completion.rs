//! `keepmark completion SHELL`: completions for a shell, on standard output.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use keepmark_model::Failure;

use crate::arguments::Arguments;
use crate::exit::Outcome;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  keepmark completion bash > /etc/bash_completion.d/keepmark
  keepmark completion zsh > /usr/share/zsh/vendor-completions/_keepmark";

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CompletionArguments {
    /// Which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Runs it.
pub fn run(arguments: &CompletionArguments) -> Result<Outcome, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "keepmark", &mut script);
    output::text(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Done)
}
