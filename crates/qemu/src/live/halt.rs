//! Shutting the guest of a running QEMU down for a revert, and starting it again; QEMU itself stays.
//!
//! A mark says from before the guest is asked until it runs again that this is ours. If keepmark dies meanwhile without having
//! written anything, the next run starts the guest again.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Live;
use crate::disks::{self, Survey};
use crate::error::{Error, Result};
use crate::leftovers::status;
use crate::qmp::wire::Event;
use crate::qmp::{Peer, Qmp};
use crate::temporary::HALTED;

const POLL: Duration = Duration::from_millis(100);
const RESET_WAIT: Duration = Duration::from_secs(10);
const FIRMWARE_WAIT: Duration = Duration::from_secs(10);

impl Live {
    /// Presses the guest's power button and waits.
    pub(super) fn halt(&mut self, within: Duration, interrupted: &dyn Fn() -> bool) -> Result<()> {
        if !self.capabilities.set_action {
            let what = "stay when its guest powers down (QEMU 6.0 or newer is needed): end it, and revert its images (image:FILE)".into();
            return Err(Error::Unsupported { version: self.qmp.version().to_string(), what });
        }
        let disk = self.survey()?.disks.into_iter().next();
        let Some(node) = disk.map(|disk| disk.active().to_owned()) else { return Ok(()) };
        self.qmp.run("block-dirty-bitmap-add", json!({ "node": node, "name": HALTED, "persistent": false, "disabled": true }))?;
        if !Habits::of(&self.peer).stays {
            self.qmp.run("set-action", json!({ "shutdown": "pause" }))?;
        }
        let result = self.qmp.run("system_powerdown", Value::Null).and_then(|()| wait_down(&mut self.qmp, within, interrupted));
        if result.is_ok() {
            self.halted = true;
        } else {
            // The first failure is what counts; a mark that is left is removed by the next run.
            drop(go_on(&mut self.qmp, &self.peer));
        }
        result
    }

    /// Starts the guest again, if it was shut down by keepmark.
    pub(super) fn go_on(&mut self) -> Result<()> {
        if self.halted { go_on(&mut self.qmp, &self.peer) } else { Ok(()) }
    }
}

/// Where keepmark's mark is that it has shut the guest down.
pub(super) fn mark(survey: &Survey) -> Option<String> {
    let has = |node: &&disks::reply::Node| node.dirty_bitmaps.iter().any(|bitmap| bitmap.name.as_deref() == Some(HALTED));
    survey.nodes.iter().find(has).map(|node| node.node_name.clone())
}

/// Ends what a dead run began, if it wrote nothing: QEMU no longer stays when its guest powers down, and a guest that did starts.
pub(super) fn recover(qmp: &mut Qmp, peer: &Peer) -> Result<Vec<String>> {
    if mark(&disks::look(qmp)?).is_none() {
        return Ok(Vec::new());
    }
    let was_down = status(qmp)? == "shutdown";
    go_on(qmp, peer)?;
    Ok(vec![if was_down { "shutdown of the guest, which starts again" } else { "preparation for the guest's shutdown" }.to_owned()])
}

// Resets a guest that has powered down and lets it run; what QEMU does by itself comes after that, and the mark goes last.
fn go_on(qmp: &mut Qmp, peer: &Peer) -> Result<()> {
    let own = Habits::of(peer);
    let was_down = status(qmp)? == "shutdown";
    if was_down {
        if own.ends_at_reset {
            qmp.run("set-action", json!({ "reboot": "reset" }))?;
        }
        qmp.run("system_reset", Value::Null)?;
        let deadline = Instant::now() + RESET_WAIT;
        while status(qmp)? == "shutdown" && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }
    // A reset that came through before keepmark died leaves it as before its first start.
    if status(qmp)? == "prelaunch" {
        qmp.run("cont", Value::Null)?;
    }
    if own.ends_at_reset {
        if was_down {
            wait_for_firmware(qmp)?;
        }
        qmp.run("set-action", json!({ "reboot": "shutdown" }))?;
    }
    if !own.stays {
        qmp.run("set-action", json!({ "shutdown": "poweroff" }))?;
    }
    let Some(node) = mark(&disks::look(qmp)?) else { return Ok(()) };
    qmp.run("block-dirty-bitmap-remove", json!({ "node": node, "name": HALTED }))
}

// SeaBIOS resets itself once more when it was not just switched on; other firmware does not.
fn wait_for_firmware(qmp: &mut Qmp) -> Result<()> {
    let is_its_own = |event: &Event| event.name == "RESET" && event.data["guest"] == true;
    match qmp.wait_event("the firmware's reset", FIRMWARE_WAIT, is_its_own) {
        Err(error @ Error::Gone { .. }) => Err(error),
        _ => Ok(()),
    }
}

/// What a QEMU does by itself. It does not tell; how it was started does, unless somebody changed it since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Habits {
    /// It stays when its guest powers down.
    stays: bool,
    /// It ends when its guest is reset.
    ends_at_reset: bool,
}

impl Habits {
    fn of(peer: &Peer) -> Self {
        Self::read(&std::fs::read(format!("/proc/{}/cmdline", peer.pid)).unwrap_or_default())
    }

    fn read(command_line: &[u8]) -> Self {
        let words: Vec<&str> = command_line.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
        let option = |word: &&str| word.strip_prefix('-').map(|rest| rest.strip_prefix('-').unwrap_or(rest).to_owned());
        let is = |wanted: &str| words.iter().any(|word| option(word).as_deref() == Some(wanted));
        let acts = |wanted: &str| {
            let of_action = words.windows(2).filter(|pair| option(&pair[0]).as_deref() == Some("action"));
            of_action.flat_map(|pair| pair[1].split(',')).any(|part| part == wanted)
        };
        Self { stays: is("no-shutdown") || acts("shutdown=pause"), ends_at_reset: is("no-reboot") || acts("reboot=shutdown") }
    }
}

fn wait_down(qmp: &mut Qmp, within: Duration, interrupted: &dyn Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + within;
    while status(qmp)? != "shutdown" {
        if interrupted() {
            return Err(Error::Interrupted);
        }
        if Instant::now() >= deadline {
            return Err(Error::NotDown { waited: within });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Habits;

    #[test]
    fn how_qemu_was_started_says_what_it_does() {
        for (line, stays, ends_at_reset) in [
            (&b"qemu\0-no-shutdown\0"[..], true, false),
            (b"qemu\0--no-shutdown\0-no-reboot\0", true, true),
            (b"qemu\0-action\0reboot=shutdown,shutdown=pause\0", true, true),
            (b"qemu\0-action\0shutdown=poweroff\0", false, false),
            (b"qemu\0-name\0no-shutdown\0", false, false),
            (b"", false, false),
        ] {
            assert_eq!(Habits::read(line), Habits { stays, ends_at_reset }, "{}", String::from_utf8_lossy(line));
        }
    }
}
