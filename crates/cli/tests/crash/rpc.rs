//! What is said to libvirtd: which of its calls change something, told by their numbers in libvirt's remote protocol.
//!
//! A message is a length and a header of six numbers (program, version, procedure, type, serial, status), all of four bytes, the
//! highest first. The numbers of procedures never change. Whatever is not known as a question counts as a change.

const REMOTE: u32 = 0x2000_8086;
const OF_QEMU: u32 = 0x2000_8087;
const CALL: u32 = 0;
const REPLY: u32 = 1;

const QUESTIONS: &[u32] = &[];
const CHANGES: &[(u32, &str)] = &[];

/// The change that a message calls for, if it is one.
pub fn change(message: &[u8]) -> Option<String> {
    let (program, procedure, kind) = header(message.get(4..)?)?;
    let is_call = kind == CALL && program == REMOTE && !QUESTIONS.contains(&procedure);
    is_call.then(|| {
        let known = CHANGES.iter().find(|(number, _)| *number == procedure);
        known.map_or_else(|| format!("libvirt call {procedure}"), |(_, name)| format!("libvirt {name}"))
    })
}

/// Whether these bytes begin an answer; its length is read before, by itself.
pub fn is_answer(bytes: &[u8]) -> bool {
    header(bytes).is_some_and(|(program, _, kind)| [REMOTE, OF_QEMU].contains(&program) && kind == REPLY)
}

fn header(bytes: &[u8]) -> Option<(u32, u32, u32)> {
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(4 * at..4 * at + 4)?.try_into().ok()?));
    Some((word(0)?, word(2)?, word(3)?))
}
