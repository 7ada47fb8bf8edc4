//! A monitor's connection made of libvirt's call for monitor commands: a thread takes each line, passes it on, and writes the answer.
//!
//! Only events do not come through; nothing that works on a frozen moment waits for any.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use serde_json::{Value, json};

use crate::api::Version;
use crate::error::{Error, Result, file};
use crate::link::Link;
use crate::monitor;

const NAME: &str = "the relay to QEMU's monitor";

/// Starts one; it ends when the connection is closed, or libvirt's breaks.
pub(crate) fn start(mut link: Link) -> Result<UnixStream> {
    let version = monitor::version(&mut link)?;
    let (ours, theirs) = UnixStream::pair().map_err(file("make", NAME))?;
    let serve = move || drop(serve(&mut link, &theirs, version));
    thread::Builder::new().name("relay".into()).spawn(serve).map_err(file("start", NAME))?;
    Ok(ours)
}

fn serve(link: &mut Link, stream: &UnixStream, Version { major, minor, micro }: Version) -> io::Result<()> {
    let greeting = json!({ "QMP": { "version": { "qemu": { "major": major, "minor": minor, "micro": micro } }, "capabilities": [] } });
    say(stream, &greeting)?;
    for line in BufReader::new(stream).lines() {
        say(stream, &answer(&line?, |command, text| monitor::pass(link, command, text))?)?;
    }
    Ok(())
}

fn say(mut stream: &UnixStream, message: &Value) -> io::Result<()> {
    stream.write_all(format!("{message}\n").as_bytes())
}

// libvirt gives commands numbers of its own, so ours are taken off and put on again. A connection that broke under a command ends the
// relay: whether QEMU got it is unknown. What libvirt refuses by itself, QEMU never got.
fn answer(line: &str, pass: impl FnOnce(&str, &str) -> Result<String>) -> io::Result<Value> {
    let mut command: Value = serde_json::from_str(line)?;
    let id = command.as_object_mut().and_then(|members| members.remove("id"));
    let mut answer = match command["execute"].as_str().unwrap_or_default() {
        "qmp_capabilities" => json!({ "return": {} }),
        name => match pass(name, &command.to_string()) {
            Ok(text) => serde_json::from_str(&text)?,
            Err(lost @ (Error::Unreachable { .. } | Error::NoDomain { .. })) => return Err(io::Error::other(lost)),
            Err(refused) => json!({ "error": { "class": "GenericError", "desc": refused.to_string() } }),
        },
    };
    if let (Some(id), Some(members)) = (id, answer.as_object_mut()) {
        members.insert("id".into(), id);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: &str = r#"{"execute": "stop", "id": 7}"#;

    #[test]
    fn answers_bear_the_number_of_their_command_and_not_libvirts() {
        let reply = |text: &str| {
            let text = text.to_owned();
            answer(STOP, move |command, line| {
                assert_eq!((command, line), ("stop", r#"{"execute":"stop"}"#));
                Ok(text)
            })
        };
        assert_eq!(reply(r#"{"return": {}, "id": "libvirt-9"}"#).unwrap(), json!({ "return": {}, "id": 7 }));
        let refused = reply(r#"{"error": {"class": "x", "desc": "no"}, "id": "libvirt-9"}"#).unwrap();
        assert_eq!((&refused["error"]["desc"], &refused["id"]), (&json!("no"), &json!(7)));
        assert!(reply("rubbish").is_err());
    }

    #[test]
    fn what_libvirt_refuses_is_a_refusal_and_a_broken_connection_ends_the_relay() {
        let refused = |is_lock| Error::Refused { message: "busy".into(), is_lock };
        assert_eq!(answer(STOP, |_, _| Err(refused(true))).unwrap()["error"]["desc"], "busy");
        let lost = Error::Unreachable { uri: None, is_denied: false, source: "gone".into() };
        assert!(answer(STOP, |_, _| Err(lost)).is_err());
        assert!(answer("no JSON", |_, _| Ok(String::new())).is_err());
    }

    #[test]
    fn the_handshake_stays_here() {
        let hello = answer(r#"{"execute": "qmp_capabilities", "id": 1}"#, |_, _| Err(Error::Elsewhere { uri: String::new() }));
        assert_eq!(hello.unwrap(), json!({ "return": {}, "id": 1 }));
    }
}
