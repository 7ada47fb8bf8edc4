//! Holding a guest still for a moment: file systems frozen by its agent, processors stopped; both are always given back.
//!
//! A mark (a disabled bitmap in memory, which dies with QEMU as the pause does) says that the pause or freeze is ours, from
//! before it is taken until after it is given back, so that a later run can tell it from a pause of the user's.

use std::time::{Duration, Instant};

use keepmark_model::seam::Freeze;
use serde_json::{Value, json};

use super::Fixed;
use crate::agent::{self, Agent, Channel};
use crate::error::{Error, Result};
use crate::leftovers::status;
use crate::qmp::Qmp;
use crate::temporary::{FROZEN, PAUSED};
use crate::watchdog::Watchdog;

const AGENT_WAIT: Duration = Duration::from_secs(3);
const THAW_WAIT: Duration = Duration::from_secs(5);
// The ordinary way out of a pause takes milliseconds, an error's up to two command time-outs.
const PAUSE_MAX: Duration = Duration::from_secs(25);
const FREEZE_SLACK: Duration = Duration::from_secs(10);

/// What holds the guest still.
pub(crate) struct Stillness<'a> {
    pub(crate) qmp: &'a mut Qmp,
    pub(crate) watchdog: Option<Watchdog>,
    /// Node that carries the marks.
    pub(crate) node: String,
    pub(crate) run: String,
    pub(crate) fixed: Fixed,
    // Kept open while a thaw may still be on its way to an agent that hangs.
    agent: Option<Agent>,
}

impl<'a> Stillness<'a> {
    pub(crate) fn new(qmp: &'a mut Qmp, watchdog: Option<Watchdog>, node: String, run: String) -> Self {
        Self { qmp, watchdog, node, run, fixed: Fixed::default(), agent: None }
    }

    /// Does `work` with the file systems frozen, if that is wanted and possible; what prevents it is a finding.
    pub(crate) fn quiesced<T>(&mut self, freeze: Freeze, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let Freeze::IfPossible { deadline } = freeze else { return work(self) };
        let Some(channel) = agent::find(self.qmp)? else { return work(self) };
        if status(self.qmp)? != "running" {
            return work(self);
        }
        if let Err(error) = self.freeze(&channel, deadline) {
            self.fixed.findings.push(format!("{error}; the backup is crash-consistent"));
            return work(self);
        }
        let since = Instant::now();
        let result = work(self);
        self.thaw(&channel, since, deadline);
        result
    }

    fn freeze(&mut self, channel: &Channel, deadline: Duration) -> Result<()> {
        if !channel.is_open {
            return Err(Error::Agent { socket: channel.socket.clone(), problem: "has no agent in the guest behind it".into() });
        }
        let mut agent = Agent::connect(&channel.socket, AGENT_WAIT.min(deadline))?;
        if agent.is_frozen(AGENT_WAIT.min(deadline))? {
            return Err(Error::Agent {
                socket: channel.socket.clone(),
                problem: "says that somebody else has frozen the file systems".into(),
            });
        }
        self.mark(FROZEN)?;
        let announced = self.watchdog.as_mut().map_or(Ok(()), |watchdog| watchdog.freezing(deadline + FREEZE_SLACK, &channel.socket));
        announced.or_else(|error| self.unmark(FROZEN).and(Err(error)))?;
        let frozen = agent.freeze(deadline);
        self.agent = Some(agent);
        if frozen.is_err() {
            self.unfrozen();
        }
        frozen.map(drop)
    }

    fn thaw(&mut self, channel: &Channel, since: Instant, deadline: Duration) {
        let first = self.agent.as_mut().map_or_else(|| agent::thaw_at(&channel.socket, THAW_WAIT), |agent| agent.thaw(THAW_WAIT));
        self.agent = None;
        match first.or_else(|_| agent::thaw_at(&channel.socket, THAW_WAIT)) {
            Ok(()) => {
                let frozen = since.elapsed();
                self.fixed.frozen = Some(frozen);
                if frozen > deadline {
                    self.fixed.findings.push(format!("the guest was frozen for {} ms, longer than allowed", frozen.as_millis()));
                }
                self.unfrozen();
            }
            // The watchdog still has it as outstanding and goes on trying.
            Err(error) => self.fixed.findings.push(format!("the guest's file systems could not be thawed: {error}")),
        }
    }

    fn unfrozen(&mut self) {
        // Without the watchdog there is nobody to be told; the mark is removed as a leftover at the latest.
        drop(self.watchdog.as_mut().map(Watchdog::thawed));
        drop(self.unmark(FROZEN));
    }

    /// Does `work` with the processors stopped, if they run.
    pub(crate) fn paused<T>(&mut self, work: impl FnOnce(&mut Qmp) -> Result<T>) -> Result<T> {
        if status(self.qmp)? != "running" {
            return work(self.qmp);
        }
        self.mark(PAUSED)?;
        let announced = self.watchdog.as_mut().map_or(Ok(()), |watchdog| watchdog.pausing(PAUSE_MAX));
        announced.or_else(|error| self.unmark(PAUSED).and(Err(error)))?;
        // Whoever has paused the VM since is not resumed by us. In the milliseconds of our own pause nobody can tell the two apart.
        if status(self.qmp)? != "running" {
            drop(self.watchdog.as_mut().map(Watchdog::running));
            self.unmark(PAUSED)?;
            return work(self.qmp);
        }
        let since = Instant::now();
        // QEMU works in order: a stop whose answer is late comes before the cont.
        let result = self.qmp.run("stop", Value::Null).and_then(|()| work(self.qmp));
        let resumed = self
            .qmp
            .run("cont", Value::Null)
            .or_else(|error| if error.is_unreachable() { Err(error) } else { self.qmp.run("cont", Value::Null) });
        self.fixed.pause = since.elapsed();
        resumed.map_err(|source| Error::NotResumed { source: Box::new(source) })?;
        drop(self.watchdog.as_mut().map(Watchdog::running));
        self.unmark(PAUSED)?;
        result
    }

    fn mark(&mut self, prefix: &str) -> Result<()> {
        let name = format!("{prefix}{}", self.run);
        self.qmp.run("block-dirty-bitmap-add", json!({ "node": self.node, "name": name, "persistent": false, "disabled": true }))
    }

    fn unmark(&mut self, prefix: &str) -> Result<()> {
        let name = format!("{prefix}{}", self.run);
        self.qmp.run("block-dirty-bitmap-remove", json!({ "node": self.node, "name": name }))
    }
}
