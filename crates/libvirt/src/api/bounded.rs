//! A call of the library with an end: it is made in a thread of its own, which is left behind when nobody answers.
//!
//! libvirt waits for QEMU's monitor without end, and a QEMU that stands still (stopped, or its storage gone) never answers. The thread
//! that is left holds what it needs until the library returns; what it did then is found by the next run, as after a lost connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use super::{Fault, Result};

// How often somebody who waits looks whether the user wants to stop.
const LOOK: Duration = Duration::from_millis(100);
// What a call gets after the user wants to stop: whatever answers at all has answered by then.
const INTERRUPTED: Duration = Duration::from_secs(2);
// What one gets where the last one had no answer.
const MUTE: Duration = Duration::from_secs(5);

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// A question. libvirt itself waits 30 s for a domain's lock and then says so, which tells more than our own end.
    Question,
    /// Something that changes a domain.
    Work,
    /// A start, which may have to claim memory and devices.
    Start,
    /// The guest agent, whose time libvirt limits itself. What is frozen must be thawed, whoever wants to stop.
    Agent,
}

impl Patience {
    fn limit(self) -> Duration {
        match self {
            Self::Question => Duration::from_secs(40),
            Self::Work => Duration::from_secs(60),
            Self::Start => Duration::from_secs(600),
            Self::Agent => Duration::from_secs(300),
        }
    }
}

/// What the calls of one connection share.
#[derive(Debug, Default)]
pub(super) struct Calls {
    interrupted: OnceLock<Arc<AtomicBool>>,
    is_mute: AtomicBool,
}

impl Calls {
    /// From now on a call is given up soon after this becomes true.
    pub(super) fn heed(&self, interrupted: Arc<AtomicBool>) {
        // One connection has one user.
        drop(self.interrupted.set(interrupted));
    }

    /// Makes a call.
    pub(super) fn make<T: Send + 'static>(
        &self,
        call: &'static str,
        patience: Patience,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = sync_channel(1);
        let spawned = thread::Builder::new().name("libvirt".into()).spawn(move || drop(tell.send(work())));
        if spawned.is_err() {
            return Err(Fault::of_system(call));
        }
        // Counted in looks, not by a clock: a keepmark that was stopped meanwhile has not waited.
        let (mut waited, mut stopping) = (Duration::ZERO, Duration::ZERO);
        loop {
            match told.recv_timeout(LOOK) {
                Ok(answer) => {
                    self.is_mute.store(false, Ordering::Relaxed);
                    return answer;
                }
                Err(RecvTimeoutError::Disconnected) => return Err(Fault::of_system(call)),
                Err(RecvTimeoutError::Timeout) => waited += LOOK,
            }
            if self.is_interrupted(patience) {
                stopping += LOOK;
            }
            let is_interrupted = stopping >= INTERRUPTED;
            if is_interrupted || waited >= self.limit(patience) {
                self.is_mute.store(true, Ordering::Relaxed);
                return Err(Fault::unanswered(call, waited, is_interrupted));
            }
        }
    }

    fn is_interrupted(&self, patience: Patience) -> bool {
        patience != Patience::Agent && self.interrupted.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    fn limit(&self, patience: Patience) -> Duration {
        let is_mute = patience != Patience::Agent && self.is_mute.load(Ordering::Relaxed);
        if is_mute { patience.limit().min(MUTE) } else { patience.limit() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Kind;
    use super::*;

    fn never() -> Result<()> {
        loop {
            thread::park();
        }
    }

    #[test]
    fn whoever_wants_to_stop_is_heard_while_nobody_answers() {
        let calls = Calls::default();
        let flag = Arc::new(AtomicBool::new(false));
        calls.heed(Arc::clone(&flag));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| calls.make("wait", Patience::Work, never));
            thread::sleep(Duration::from_millis(200));
            assert!(!waiting.is_finished());
            flag.store(true, Ordering::Relaxed);
            let fault = waiting.join().unwrap().unwrap_err();
            assert_eq!(fault.kind, Kind::Interrupted, "{fault}");
        });
        // What answers is heard all the same: what was begun has to be taken back.
        assert_eq!(calls.make("answer", Patience::Work, || Ok(7)), Ok(7));
    }

    #[test]
    fn after_a_call_without_answer_the_next_one_gets_less_time_until_one_answers() {
        let calls = Calls::default();
        calls.is_mute.store(true, Ordering::Relaxed);
        assert_eq!(calls.limit(Patience::Start), MUTE);
        let began = Instant::now();
        assert_eq!(calls.make("wait", Patience::Question, never).unwrap_err().kind, Kind::Unanswered);
        assert!(began.elapsed() < Duration::from_secs(20));
        assert_eq!(calls.make("answer", Patience::Question, || Ok(())), Ok(()));
        assert_eq!(calls.limit(Patience::Question), Patience::Question.limit());
    }
}
