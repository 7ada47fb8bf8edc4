//! What is said to libvirtd: which of its calls change something, told by their numbers in libvirt's remote protocol.
//!
//! A message is a length and a header of six numbers (program, version, procedure, type, serial, status), all of four bytes, the
//! highest first. The numbers of procedures never change. Whatever is not known as a question counts as a change.

const REMOTE: u32 = 0x2000_8086;
const OF_QEMU: u32 = 0x2000_8087;
const CALL: u32 = 0;
const REPLY: u32 = 1;
const BACKUP_BEGIN: u32 = 421;

// Open and close, XML, look-ups, features, authentication, version, state, job statistics, managed save, lists, the backup's XML.
const QUESTIONS: &[u32] = &[1, 2, 14, 23, 24, 60, 66, 157, 183, 212, 273, 283, 298, 413, 422];
const CHANGES: &[(u32, &str)] = &[
    (164, "abort-job"),
    (237, "block-job-abort"),
    (335, "fs-freeze"),
    (336, "fs-thaw"),
    (350, "define"),
    (411, "checkpoint-create"),
    (417, "checkpoint-delete"),
    (420, "agent-time-out"),
    (BACKUP_BEGIN, "backup-begin"),
];

/// The change that a message calls for, if it is one.
pub fn change(message: &[u8]) -> Option<String> {
    let (program, procedure, kind) = header(message.get(4..)?)?;
    let is_call = kind == CALL && program == REMOTE && !QUESTIONS.contains(&procedure);
    is_call.then(|| {
        let known = CHANGES.iter().find(|(number, _)| *number == procedure);
        let name = known.map_or_else(|| format!("libvirt call {procedure}"), |(_, name)| format!("libvirt {name}"));
        // An audit's moment is begun without.
        if procedure == BACKUP_BEGIN && !holds(message, b"<domaincheckpoint") { format!("{name} without checkpoint") } else { name }
    })
}

fn holds(message: &[u8], text: &[u8]) -> bool {
    message.windows(text.len()).any(|window| window == text)
}

/// Whether these bytes begin an answer; its length is read before, by itself.
pub fn is_answer(bytes: &[u8]) -> bool {
    header(bytes).is_some_and(|(program, _, kind)| [REMOTE, OF_QEMU].contains(&program) && kind == REPLY)
}

fn header(bytes: &[u8]) -> Option<(u32, u32, u32)> {
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(4 * at..4 * at + 4)?.try_into().ok()?));
    Some((word(0)?, word(2)?, word(3)?))
}

#[test]
fn changes_are_told_from_questions_and_answers() {
    let message = |words: [u32; 7]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    let begin = [28, REMOTE, 1, 421, CALL, 7, 0];
    assert_eq!(change(&message(begin)).as_deref(), Some("libvirt backup-begin without checkpoint"));
    assert_eq!(change(&[message(begin), b"<domaincheckpoint>".to_vec()].concat()).as_deref(), Some("libvirt backup-begin"));
    assert_eq!(change(&message([28, REMOTE, 1, 9999, CALL, 7, 0])).as_deref(), Some("libvirt call 9999"));
    // What is asked of QEMU by it is a question: `keepmark-libvirt` has a test of its own for that.
    for other in [[28, REMOTE, 1, 14, CALL, 7, 0], [28, OF_QEMU, 1, 1, CALL, 7, 0], [28, REMOTE, 1, 421, REPLY, 7, 0]] {
        assert_eq!(change(&message(other)), None);
    }
    assert!(is_answer(&message([28, REMOTE, 1, 421, REPLY, 7, 0])[4..]) && !is_answer(b"28"));
}
