//! Quiescing the guest through libvirt: frozen for as short as the backup's start takes, and thawed whatever happens.
//!
//! A file in the run folder says that a freeze is ours, from before it is taken until it is given back: should the watchdog die with
//! us, the next run finds it and thaws.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keepmark_model::seam::Freeze;
use keepmark_qemu::watchdog::Watchdog;

use crate::api::{self, Domain, Fault, Kind};
use crate::error::{Result, file};
use crate::link::Link;

// Beyond the deadline, before the watchdog kills us: libvirt counts in whole seconds and synchronises with the agent first.
const SLACK: Duration = Duration::from_secs(20);
const STATUS_WAIT: Duration = Duration::from_secs(3);

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Quiet {
    /// How long the file systems were frozen; none if they were not.
    pub(crate) frozen: Option<Duration>,
    /// What went otherwise than wanted.
    pub(crate) findings: Vec<String>,
}

/// What is needed to freeze.
#[derive(Debug)]
pub(crate) struct Means<'a> {
    pub(crate) freeze: Freeze,
    /// Whether the domain has an agent's channel, and whether the guest has it open.
    pub(crate) agent: (bool, bool),
    pub(crate) run_dir: &'a Path,
    /// What thaws when this process dies.
    pub(crate) watchdog: Option<&'a mut Watchdog>,
}

/// Does `work` with the guest's file systems frozen, if that is wanted and possible; what prevents it is a finding.
pub(crate) fn quiesced<T>(link: &mut Link, means: Means<'_>, work: impl FnOnce(&mut Link) -> Result<T>) -> Result<(T, Quiet)> {
    let mut quiet = Quiet::default();
    let deadline = match (means.freeze, means.agent) {
        (Freeze::IfPossible { deadline }, (true, true)) => deadline,
        (Freeze::IfPossible { .. }, (true, false)) => {
            quiet.findings.push("the guest agent is configured, but does not run in the guest; the backup is crash-consistent".into());
            return Ok((work(link)?, quiet));
        }
        (Freeze::IfPossible { .. } | Freeze::Never, _) => return Ok((work(link)?, quiet)),
    };
    // Somebody else's freeze is not ours to take over, nor to give back.
    if let Ok(Ok(true)) = link.attempt(|domain| domain.is_frozen(STATUS_WAIT.min(deadline))) {
        quiet.findings.push("somebody else has frozen the guest's file systems; the backup is crash-consistent".into());
        return Ok((work(link)?, quiet));
    }
    let mut hold = Hold { watchdog: means.watchdog, mark: mark(means.run_dir, link.uuid()), deadline };
    match hold.freeze(link)? {
        Frozen::Yes => {
            let since = Instant::now();
            let result = work(link);
            quiet.findings.extend(hold.give_back(link));
            quiet.frozen = Some(since.elapsed());
            if since.elapsed() > deadline {
                quiet.findings.push(format!("the guest was frozen for {} ms, longer than allowed", since.elapsed().as_millis()));
            }
            result.map(|value| (value, quiet))
        }
        Frozen::No(fault) => {
            quiet.findings.push(format!("{fault}; the backup is crash-consistent"));
            hold.forget(link);
            Ok((work(link)?, quiet))
        }
        Frozen::Perhaps(fault) => {
            quiet.findings.push(format!("{fault}; the backup is crash-consistent"));
            // A freeze that comes late is taken back by the thaw that is sent after it.
            quiet.findings.extend(hold.give_back(link));
            Ok((work(link)?, quiet))
        }
    }
}

// What is known after a freeze was asked for.
enum Frozen {
    Yes,
    // The agent refused: perhaps somebody else froze it, whose freeze must stay.
    No(Fault),
    Perhaps(Fault),
}

impl Frozen {
    // Messages are translated, the agent's own words in them are not; `is_frozen` is asked where neither they nor the code tell.
    fn read(answer: api::Result<u32>, is_frozen: impl FnOnce() -> Option<bool>) -> Self {
        match answer {
            Ok(_) => Self::Yes,
            Err(fault) if matches!(fault.kind, Kind::AgentMute | Kind::Lost | Kind::Timeout) => Self::Perhaps(fault),
            Err(fault) if fault.message.contains("in frozen state") => Self::No(fault),
            Err(fault) => match is_frozen() {
                // It was not before.
                Some(true) => Self::Perhaps(fault),
                // A refusal froze nothing, whatever language it is in.
                Some(false) | None => Self::No(fault),
            },
        }
    }
}

// Everything that must be given back.
struct Hold<'a> {
    watchdog: Option<&'a mut Watchdog>,
    mark: PathBuf,
    deadline: Duration,
}

impl Hold<'_> {
    fn freeze(&mut self, link: &mut Link) -> Result<Frozen> {
        fs::write(&self.mark, link.name()).map_err(file("write", &self.mark))?;
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.freezing(self.deadline + SLACK, Path::new(link.uuid()))?;
        }
        match link.attempt(|domain| domain.limit_agent(Some(self.deadline)))? {
            Ok(()) => {
                let answer = link.attempt_once(Domain::freeze);
                Ok(Frozen::read(answer, || link.attempt_once(|domain| domain.is_frozen(STATUS_WAIT)).ok()))
            }
            Err(fault) => Ok(Frozen::No(fault)),
        }
    }

    // Nothing was taken.
    fn forget(mut self, link: &mut Link) {
        drop(link.call(|domain| domain.limit_agent(None)));
        drop(self.watchdog.as_mut().map(|watchdog| watchdog.thawed()));
        drop(fs::remove_file(&self.mark));
    }

    // The watchdog still has it as outstanding if the thaw fails, and goes on trying.
    fn give_back(mut self, link: &mut Link) -> Option<String> {
        let thawed = link.call(Domain::thaw).or_else(|_| link.call(Domain::thaw));
        // The limit held for our freeze only; libvirt does not tell what it was, so its default comes back.
        drop(link.call(|domain| domain.limit_agent(None)));
        match thawed {
            Ok(_) => {
                drop(self.watchdog.as_mut().map(|watchdog| watchdog.thawed()));
                drop(fs::remove_file(&self.mark));
                None
            }
            Err(error) => Some(format!("the guest's file systems may still be frozen: {error}")),
        }
    }
}

/// Thaws a guest that a dead run froze; says so.
pub(crate) fn clean_up(link: &mut Link, run_dir: &Path) -> Result<Option<String>> {
    let mark = mark(run_dir, link.uuid());
    if !mark.exists() {
        return Ok(None);
    }
    match link.call(Domain::thaw) {
        Ok(_) => {
            fs::remove_file(&mark).map_err(file("remove", &mark))?;
            Ok(Some("freeze of the guest's file systems".into()))
        }
        // It may have been restarted since, or be beyond help; backups must go on. The mark stays for the next run.
        Err(error) => Ok(Some(format!("nothing of a freeze: the guest may still be frozen, since {error}"))),
    }
}

fn mark(run_dir: &Path, uuid: &str) -> PathBuf {
    run_dir.join(format!("frozen-{uuid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_of_somebody_elses_is_not_taken_for_ours() {
        let fault = |kind, message: &str| Fault { call: "freeze", kind, message: message.into() };
        let refused = "guest agent command failed: unable to execute QEMU agent command 'guest-fsfreeze-freeze': Command \
            guest-fsfreeze-freeze has been disabled: the agent is in frozen state";
        let read = |fault, is_frozen: Option<bool>| Frozen::read(Err(fault), || is_frozen);
        assert!(matches!(read(fault(Kind::Other, refused), Some(true)), Frozen::No(_)));
        let french = "erreur interne : la commande de l'agent a échoué";
        assert!(matches!(read(fault(Kind::Other, french), Some(false)), Frozen::No(_)));
        assert!(matches!(read(fault(Kind::Other, french), None), Frozen::No(_)));
        assert!(matches!(read(fault(Kind::Other, french), Some(true)), Frozen::Perhaps(_)));
        assert!(matches!(read(fault(Kind::AgentMute, "Guest agent is not responding"), Some(false)), Frozen::Perhaps(_)));
        assert!(matches!(read(fault(Kind::Lost, "End of file"), None), Frozen::Perhaps(_)));
        assert!(matches!(Frozen::read(Ok(2), || None), Frozen::Yes));
    }
}
