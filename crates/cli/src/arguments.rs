//! The command line: what is global, and the list of subcommands; each subcommand's own arguments are in its file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::commands::{
    adopt_copy, backup, checkpoint, completion, consolidate, delete, doctor, forget, init, list, man, pin, plan, prune, restore, revert,
    scheme, show, status, verify, watchdog,
};

const EXAMPLES: &str = "\
Examples:
  keepmark init /backup/vms
  keepmark --store /backup/vms backup web01
  keepmark --store /backup/vms backup qmp:/run/web02.qmp
  keepmark --store /backup/vms backup image:/vms/web01.qcow2 --name web01
  keepmark --store /backup/vms list
  keepmark --store /backup/vms restore web01@latest --define web01 --start
  keepmark --store /backup/vms restore web01@latest --to /restored

A VM is the name or UUID of a libvirt domain (running or shut off), qmp:SOCKET (a running QEMU) or image:[LABEL=]FILE[,[LABEL=]FILE] (powered off).
A BACKUP is an id or its first letters, VM@latest, VM@-1 (the one before) or VM@2026-11-22T18:00.

Exit codes: 0 done, 1 failed, 2 usage, 3 done with findings, 10 no store, 11 locked, 12 wrong password,
13 VM not reachable, 130 interrupted.";

/// Incremental backup for QEMU/KVM virtual machines that never produces an invalid backup.
#[derive(Debug, Parser)]
#[command(name = "keepmark", version, about, after_help = EXAMPLES, max_term_width = 120)]
pub struct Arguments {
    /// What holds for every subcommand.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every subcommand.
#[derive(Debug, Args)]
pub struct Global {
    /// Where backups live: a folder, repo:FOLDER or images:FOLDER
    #[arg(long, global = true, env = "KEEPMARK_STORE", value_name = "STORE")]
    pub store: Option<String>,
    /// File whose first line is the store's password (else KEEPMARK_PASSWORD, else a prompt)
    #[arg(long, global = true, env = "KEEPMARK_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Configuration file instead of /etc/keepmark/keepmark.toml and ~/.config/keepmark/keepmark.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// libvirt's URI, for VMs that are named as its domains (else libvirt's own default)
    #[arg(long, global = true, env = "LIBVIRT_DEFAULT_URI", value_name = "URI")]
    pub connect: Option<String>,
    /// One JSON object per line on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no notes, only errors and findings
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More notes
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new store
    Init(init::InitArguments),
    /// Make the copy of a store a store of its own
    AdoptCopy(adopt_copy::AdoptCopyArguments),
    /// Back a VM up: incrementally where that is provably complete
    Backup(backup::BackupArguments),
    /// Say what a backup would do, disk by disk, and why; changes nothing
    Plan(plan::PlanArguments),
    /// List backups, oldest first
    List(list::ListArguments),
    /// Show how each VM is protected
    Status(status::StatusArguments),
    /// Delete the backups of VMs that no rule of retention keeps
    Forget(forget::ForgetArguments),
    /// Delete backups; every other one restores as before
    Delete(delete::DeleteArguments),
    /// Say that a backup stays whatever the rules say
    Pin(pin::PinArguments),
    /// Say that a backup need not stay any more
    Unpin(pin::PinArguments),
    /// Print the calendar ahead: which kind falls when, and until when it stays
    Scheme(scheme::SchemeArguments),
    /// Show what is known of one backup
    Show(show::ShowArguments),
    /// Get disks of a backup back, or the whole VM
    Restore(restore::RestoreArguments),
    /// Take a VM's own disks back to a backup, in place
    Revert(revert::RevertArguments),
    /// Check that backups are whole
    Verify(verify::VerifyArguments),
    /// Make a backup need no other one (a synthetic full)
    Consolidate(consolidate::ConsolidateArguments),
    /// Free the space of what no backup needs
    Prune(prune::PruneArguments),
    /// Create, list or delete the checkpoints on a VM
    Checkpoint(checkpoint::CheckpointArguments),
    /// Check this host, the store and a VM, and name what would help
    Doctor(doctor::DoctorArguments),
    /// Print shell completions
    Completion(completion::CompletionArguments),
    /// Print or write the manual pages
    Man(man::ManArguments),
    /// Used by keepmark itself
    #[command(name = "internal-watchdog", hide = true)]
    Watchdog(watchdog::WatchdogArguments),
}
