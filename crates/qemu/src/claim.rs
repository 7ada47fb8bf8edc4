//! The lock of one running VM, held inside its QEMU, where everybody meets who can reach the VM at all: users, containers, monitors.
//!
//! A claim is a character device of ours in QEMU whose other end this process holds: a pair of sockets, one of which is passed to QEMU. When the
//! process dies, however it dies, the kernel closes its end and QEMU tells the device as disconnected. So a claim says by itself whether
//! its owner lives. Whoever comes makes a claim first and looks for others then, so of two that come at once none overlooks the
//! other; both step back and try again. Each name is used once: nobody removes a dead claim and hits a living one (docs/decisions/0013).

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::Error;

const PREFIX: &str = "km1tmp-lock-";
const DEAD: &str = "disconnected:";
// Two that meet step back for unlike times, of tens of milliseconds.
const TRIES: u32 = 6;
const STEP_BACK: Duration = Duration::from_millis(15);

/// The commands of a claim: what QEMU is told for it, and asked.
pub const COMMANDS: [&str; 4] = ["getfd", "chardev-add", "chardev-remove", "query-chardev"];

/// Runs one of [`COMMANDS`], with an open file passed along or without.
pub type Ask<'a, E> = dyn FnMut(&str, Value, Option<BorrowedFd<'_>>) -> std::result::Result<Value, E> + 'a;

/// A claim on a VM. It ends with this value, also when the process is killed.
#[derive(Debug)]
pub struct Claim {
    name: String,
    _end: UnixStream,
}

/// What came of a claim.
#[derive(Debug)]
pub enum Claimed {
    /// Nobody else has one.
    Ours(Claim),
    /// Nobody else has one, and QEMU cannot be passed one of ours: a monitor behind a relay, or an old libvirt.
    Unmarked,
}

impl Claim {
    /// Claims a VM. `subject` is what it is called in errors.
    ///
    /// # Errors
    /// [`Error::Claimed`] when a living process has claimed it; whatever `ask` fails with.
    pub fn take<E: From<Error>>(
        subject: &str,
        ask: &mut Ask<'_, E>,
        is_impossible: impl Fn(&E) -> bool,
    ) -> std::result::Result<Claimed, E> {
        let mut tries = 0;
        loop {
            let made = make(ask)?;
            let claim = match made {
                Ok(claim) => Some(claim),
                Err(refusal) if is_impossible(&refusal) => None,
                Err(refusal) => return Err(refusal),
            };
            let others = others(&ask("query-chardev", Value::Null, None)?, claim.as_ref());
            for dead in &others.dead {
                // Somebody else may have removed it just now.
                drop(ask("chardev-remove", json!({ "id": dead }), None));
            }
            let Some(living) = others.living.first() else { return Ok(claim.map_or(Claimed::Unmarked, Claimed::Ours)) };
            if let Some(claim) = claim {
                claim.give_up(ask);
            }
            tries += 1;
            if tries == TRIES {
                return Err(Error::Claimed { subject: subject.to_owned(), holder: describe(living) }.into());
            }
            std::thread::sleep(STEP_BACK * (1 + std::process::id() % 7) * tries);
        }
    }

    /// Removes it from QEMU. One that stays is dead, and removed by whoever claims the VM next.
    pub fn give_up<E>(self, ask: &mut Ask<'_, E>) {
        drop(ask("chardev-remove", json!({ "id": self.name }), None));
    }
}

// The inner result is QEMU's refusal to take the file.
fn make<E: From<Error>>(ask: &mut Ask<'_, E>) -> std::result::Result<std::result::Result<Claim, E>, E> {
    let failed = |source| Error::File { action: "make", path: "a pair of sockets".into(), source };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    // No two open sockets of a host have one inode number, whatever namespaces their processes live in.
    let inode = rustix::fs::fstat(&ours).map_err(|error| failed(error.into()))?.st_ino;
    let name = format!("{PREFIX}{inode:x}.{}.{}", std::process::id(), rustix::process::geteuid().as_raw());
    if let Err(refusal) = ask("getfd", json!({ "fdname": name }), Some(theirs.as_fd())) {
        return Ok(Err(refusal));
    }
    let address = json!({ "type": "fd", "data": { "str": name } });
    ask("chardev-add", json!({ "id": name, "backend": { "type": "socket", "data": { "addr": address, "server": false } } }), None)?;
    Ok(Ok(Claim { name, _end: ours }))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Others {
    living: Vec<String>,
    dead: Vec<String>,
}

fn others(chardevs: &Value, ours: Option<&Claim>) -> Others {
    let mut others = Others::default();
    for chardev in chardevs.as_array().into_iter().flatten() {
        let Some(label) = chardev["label"].as_str().filter(|label| label.starts_with(PREFIX)) else { continue };
        let is_dead = chardev["filename"].as_str().is_some_and(|name| name.starts_with(DEAD));
        match (ours.is_some_and(|ours| ours.name == label), is_dead) {
            (true, _) => {}
            (false, true) => others.dead.push(label.to_owned()),
            (false, false) => others.living.push(label.to_owned()),
        }
    }
    others
}

// What it says of itself; its process may be one of another container.
fn describe(claim: &str) -> String {
    let mut parts = claim.strip_prefix(PREFIX).unwrap_or_default().split('.').skip(1);
    match (parts.next(), parts.next()) {
        (Some(pid), Some(user)) if [pid, user].iter().all(|part| part.parse::<u32>().is_ok()) => format!("process {pid} of user {user}"),
        _ => format!("the holder of {}", claim.chars().filter(|c| c.is_ascii_graphic()).take(64).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;

    /// A QEMU that keeps claims; those of `dead` are disconnected.
    struct Fake {
        chardevs: Vec<String>,
        dead: Vec<String>,
        refuses_files: bool,
    }

    impl Fake {
        fn claim(&mut self) -> Result<Claimed> {
            let refused =
                |command: &str| Error::Refused { command: command.into(), class: "GenericError".into(), description: "no".into() };
            let mut ask = |command: &str, arguments: Value, _: Option<BorrowedFd<'_>>| {
                let id = arguments["id"].as_str().unwrap_or_default().to_owned();
                match command {
                    "getfd" if self.refuses_files => return Err(refused(command)),
                    "chardev-add" => self.chardevs.push(id),
                    "chardev-remove" => self.chardevs.retain(|chardev| *chardev != id),
                    _ => {}
                }
                let filename = |id: &String| if self.dead.contains(id) { "disconnected:fd:x" } else { "unix:" };
                Ok(self.chardevs.iter().map(|id| json!({ "label": id, "filename": filename(id) })).collect())
            };
            Claim::take("vm", &mut ask, |error| matches!(error, Error::Refused { command, .. } if command == "getfd"))
        }
    }

    fn fake(living: &[&str], dead: &[&str]) -> Fake {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Fake { chardevs: [owned(living), owned(dead)].concat(), dead: owned(dead), refuses_files: false }
    }

    #[test]
    fn a_living_claim_is_respected_and_named_and_a_dead_one_goes() {
        let mut qemu = fake(&["charmonitor"], &["km1tmp-lock-a.7.0"]);
        let claim = qemu.claim().unwrap();
        assert!(matches!(claim, Claimed::Ours(_)));
        assert!(qemu.chardevs.len() == 2 && !qemu.chardevs.contains(&"km1tmp-lock-a.7.0".to_owned()), "{:?}", qemu.chardevs);
        let held = qemu.claim().unwrap_err();
        let holder = format!("process {} of user {}", std::process::id(), rustix::process::geteuid().as_raw());
        assert!(matches!(&held, Error::Claimed { holder: told, .. } if *told == holder), "{held}");
        assert_eq!(qemu.chardevs.len(), 2);
    }

    #[test]
    fn where_no_file_can_be_passed_others_are_respected_all_the_same() {
        let mut qemu = Fake { refuses_files: true, ..fake(&[], &["km1tmp-lock-a.7.0"]) };
        assert!(matches!(qemu.claim(), Ok(Claimed::Unmarked)));
        qemu.chardevs.push("km1tmp-lock-b.8.1000".into());
        assert!(matches!(qemu.claim(), Err(Error::Claimed { holder, .. }) if holder == "process 8 of user 1000"));
    }
}
