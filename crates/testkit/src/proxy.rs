//! A man in the middle of a QMP connection: sees every command, and may hold it back, answer it or hang up.
//!
//! File descriptors (`getfd`) do not pass.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use serde_json::{Deserializer, Value};

use crate::OrFail;

/// What becomes of a command.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// QEMU gets it.
    Forward,
    /// QEMU gets this object instead, with the id that it must have.
    Instead(Value),
    /// QEMU does not get it; the client gets this object (`return` or `error`), to which the id is added.
    Answer(Value),
    /// QEMU does not get it, and both connections end.
    HangUp,
}

type Hook = Box<dyn FnMut(&Value) -> Verdict + Send>;

/// A running proxy; dropping it ends it and all its connections.
#[derive(Debug)]
pub struct QmpProxy {
    socket: PathBuf,
    state: Arc<State>,
    listener: Option<JoinHandle<()>>,
}

struct State {
    target: PathBuf,
    /// Major and minor version that QEMU is made to say it has.
    version: Option<(u32, u32)>,
    hook: Mutex<Hook>,
    seen: Mutex<Vec<Value>>,
    /// None once the proxy is to end.
    connections: Mutex<Option<Vec<UnixStream>>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").field("target", &self.target).finish_non_exhaustive()
    }
}

impl QmpProxy {
    /// Listens on `socket` for clients of the monitor `target`. `hook` is called with each command before QEMU gets it; as long
    /// as it has not returned, the client waits, and so do other clients.
    #[must_use]
    pub fn start(socket: &Path, target: &Path, hook: impl FnMut(&Value) -> Verdict + Send + 'static) -> Self {
        Self::start_as(None, socket, target, hook)
    }

    /// The same, with a greeting that tells this (major and minor) version, if any, instead of QEMU's own.
    #[must_use]
    pub fn start_as(
        version: Option<(u32, u32)>,
        socket: &Path,
        target: &Path,
        hook: impl FnMut(&Value) -> Verdict + Send + 'static,
    ) -> Self {
        let listener = UnixListener::bind(socket).or_fail(format_args!("listening on {}", socket.display()));
        let state = Arc::new(State {
            target: target.to_owned(),
            version,
            hook: Mutex::new(Box::new(hook)),
            seen: Mutex::default(),
            connections: Mutex::new(Some(Vec::new())),
        });
        let shared = Arc::clone(&state);
        let listener = std::thread::spawn(move || listen(&listener, &shared));
        Self { socket: socket.to_owned(), state, listener: Some(listener) }
    }

    /// How the monitor behind the proxy is named on keepmark's command line.
    #[must_use]
    pub fn vm(&self) -> String {
        format!("qmp:{}", self.socket.display())
    }

    /// Names of the commands that came, in order, whatever became of them.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        self.messages().iter().map(|message| name(message).to_owned()).collect()
    }

    /// The commands that came, whole.
    #[must_use]
    pub fn messages(&self) -> Vec<Value> {
        lock(&self.state.seen).clone()
    }
}

impl Drop for QmpProxy {
    fn drop(&mut self) {
        for connection in lock(&self.state.connections).take().into_iter().flatten() {
            connection.shutdown(Shutdown::Both).ok();
        }
        // Wakes the listener, which then sees that it is to end.
        UnixStream::connect(&self.socket).ok();
        if let Some(listener) = self.listener.take() {
            listener.join().ok();
        }
        std::fs::remove_file(&self.socket).ok();
    }
}

/// The command's name; empty if the message is no command.
pub(crate) fn name(message: &Value) -> &str {
    message["execute"].as_str().unwrap_or_default()
}

/// A hook that panicked has failed its test already; the state itself is sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn listen(listener: &UnixListener, state: &Arc<State>) {
    for client in listener.incoming().flatten() {
        if lock(&state.connections).is_none() {
            return;
        }
        let Ok(server) = UnixStream::connect(&state.target) else { continue };
        let Some(pair) = Pair::new(client, server, state) else { return };
        let shared = Arc::clone(state);
        std::thread::spawn(move || pair.serve(&shared));
    }
}

/// A client's connection and QEMU's.
struct Pair {
    client: UnixStream,
    server: UnixStream,
}

impl Pair {
    /// None once the proxy is to end.
    fn new(client: UnixStream, server: UnixStream, state: &State) -> Option<Self> {
        let copies = [client.try_clone(), server.try_clone()];
        lock(&state.connections).as_mut()?.extend(copies.into_iter().flatten());
        Some(Self { client, server })
    }

    fn serve(self, state: &State) {
        let from_server = self.server.try_clone().or_fail("duplicating a socket");
        let to_client = Mutex::new(self.client.try_clone().or_fail("duplicating a socket"));
        std::thread::scope(|scope| {
            scope.spawn(|| answers(from_server, &to_client, state.version));
            let _end = HangUp([&self.client, &self.server]);
            self.commands(state, &to_client);
        });
    }

    /// Passes commands on until one side or the hook ends it.
    fn commands(&self, state: &State, to_client: &Mutex<UnixStream>) {
        for message in Deserializer::from_reader(&self.client).into_iter::<Value>() {
            let Ok(message) = message else { return };
            lock(&state.seen).push(message.clone());
            let verdict = (lock(&state.hook))(&message);
            let sent = match verdict {
                Verdict::Forward => send(&self.server, &message),
                Verdict::Instead(other) => send(&self.server, &other),
                Verdict::Answer(answer) => send(&lock(to_client), &with_id(answer, &message)),
                Verdict::HangUp => return,
            };
            if sent.is_err() {
                return;
            }
        }
    }
}

/// Ends both connections, also when the hook has panicked.
struct HangUp<'a>([&'a UnixStream; 2]);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        for stream in self.0 {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

/// Passes whole lines on, so that an answer of the hook never falls into the middle of one; the first, QEMU's greeting, with another version.
fn answers(from: UnixStream, to_client: &Mutex<UnixStream>, mut version: Option<(u32, u32)>) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        if let Some(version) = version.take() {
            line = greeting(&line, version);
        }
        if lock(to_client).write_all(&line).is_err() {
            break;
        }
        line.clear();
    }
    lock(to_client).shutdown(Shutdown::Both).ok();
}

fn greeting(line: &[u8], (major, minor): (u32, u32)) -> Vec<u8> {
    let mut greeting: Value = serde_json::from_slice(line).or_fail("QEMU's greeting");
    greeting["QMP"]["version"]["qemu"] = serde_json::json!({ "major": major, "minor": minor, "micro": 0 });
    format!("{greeting}\r\n").into_bytes()
}

fn with_id(mut answer: Value, command: &Value) -> Value {
    if let (Some(object), Some(id)) = (answer.as_object_mut(), command.get("id")) {
        object.insert("id".to_owned(), id.clone());
    }
    answer
}

fn send(mut to: &UnixStream, message: &Value) -> std::io::Result<()> {
    to.write_all(format!("{message}\r\n").as_bytes())
}
