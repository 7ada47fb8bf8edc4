//! Monitors that answer like a QEMU, but for one thing.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::lab::{Lab, seeds};
use crate::mutation::{Dice, mutate};

const RECORDED: [(&str, &str); 3] = [
    ("query-block", include_str!("../../../qemu/tests/data/qemu-10.0/query-block.json")),
    ("query-named-block-nodes", include_str!("../../../qemu/tests/data/qemu-10.0/query-named-block-nodes.json")),
    ("x-debug-query-block-graph", include_str!("../../../qemu/tests/data/qemu-10.0/block-graph.json")),
];

fn honest(command: &str) -> Value {
    if let Some((_, text)) = RECORDED.iter().find(|(name, _)| *name == command) {
        return serde_json::from_str(text).unwrap();
    }
    match command {
        "query-version" => json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 }, "package": "" }),
        "query-name" => json!({ "name": "web" }),
        "query-uuid" => json!({ "UUID": "6e1a8d4c-0000-4000-8000-00000000abcd" }),
        "query-status" => json!({ "status": "running", "running": true }),
        name if name.starts_with("query-") || name.starts_with("qom-list") => json!([]),
        _ => json!({}),
    }
}

/// Serves all who come, until the test ends; the answer to one question in three is not what it should be.
fn serve(socket: PathBuf, seed: u64, outside: String) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let mut dice = Dice::new(seed);
        for client in listener.incoming().flatten() {
            let mut own = dice.clone();
            dice.below(2);
            let outside = outside.clone();
            std::thread::spawn(move || talk(&client, &mut own, &outside));
        }
    });
}

fn talk(client: &UnixStream, dice: &mut Dice, outside: &str) -> Option<()> {
    let mut writer = client;
    let greeting =
        json!({ "QMP": { "version": { "qemu": { "major": 10, "minor": 0, "micro": 2 }, "package": "" }, "capabilities": ["oob"] } });
    writeln!(writer, "{greeting}").ok()?;
    for line in BufReader::new(client).lines() {
        let message: Value = serde_json::from_str(&line.ok()?).ok()?;
        let mut answer = honest(message["execute"].as_str()?);
        if dice.below(3) == 0 {
            mutate(&mut answer, dice, outside);
        }
        if dice.below(20) == 0 {
            let event = json!({ "event": "BLOCK_JOB_COMPLETED", "data": { "device": "x".repeat(dice.below(1 << 20)) } });
            writeln!(writer, "{event}").ok()?;
        }
        writeln!(writer, "{}", json!({ "return": answer, "id": message["id"] })).ok()?;
    }
    Some(())
}

#[test]
fn hostile_monitors_lead_nowhere() {
    for seed in seeds(12) {
        let lab = Lab::new();
        lab.keepmark.ok(&["init"]);
        let socket = lab.path("vm.qmp");
        serve(socket.clone(), seed, lab.outside());
        let vm = format!("qmp:{}", socket.display());
        for command in [&["plan", &vm][..], &["backup", &vm], &["status", &vm], &["checkpoint", "list", &vm]] {
            lab.run(command, &format!("seed {seed}"));
        }
        assert_eq!(std::fs::read_to_string(lab.path("outside/canary")).unwrap(), "nobody's");
    }
}
