//! Something a build waits for until a test opens it, so that a test can act while a build runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a build may take to reach a gate.
const REACH_MAX: Duration = Duration::from_secs(30);
/// How soon it is noticed that a build which waited has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A gate. The build's own derivation connects to it, and reads a line once it is open.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    name: String,
    port: u16,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Mutex<Vec<TcpStream>>,
    came: Notify,
}

/// Where builds knock, for all gates of a test.
#[derive(Debug)]
pub(crate) struct Gates {
    port: u16,
    known: Arc<Mutex<HashMap<String, Arc<State>>>>,
    _listener: JoinSet<()>,
}

impl Gates {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let known = Arc::new(Mutex::new(HashMap::<String, Arc<State>>::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(admit(listener, known.clone()));
        Self { port, known, _listener: tasks }
    }

    /// A new gate, shut. Its name is new to the machine's store, too.
    pub(crate) fn gate(&self) -> Gate {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("gate-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let state = Arc::new(State::default());
        self.known.lock().unwrap().insert(name.clone(), state.clone());
        Gate { name, port: self.port, state }
    }
}

async fn admit(listener: TcpListener, known: Arc<Mutex<HashMap<String, Arc<State>>>>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let mut reader = BufReader::new(socket);
        let mut name = String::new();
        if reader.read_line(&mut name).await.is_err() {
            continue;
        }
        let Some(state) = known.lock().unwrap().get(name.trim()).cloned() else { continue };
        state.waiting.lock().unwrap().push(reader.into_inner());
        state.came.notify_one();
    }
}

impl Gate {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns once a build waits here. One that has ended does not count.
    pub(crate) async fn reached(&self) {
        let wait = async {
            while !self.is_reached() {
                let _ = timeout(LOOK_EVERY, self.state.came.notified()).await;
            }
        };
        timeout(REACH_MAX, wait).await.unwrap_or_else(|_| panic!("no build came to `{}`", self.name));
    }

    fn is_reached(&self) -> bool {
        let mut waiting = self.state.waiting.lock().unwrap();
        let is_open = |socket: &TcpStream| matches!(socket.try_read(&mut [0]), Err(err) if err.kind() == std::io::ErrorKind::WouldBlock);
        waiting.retain(is_open);
        !waiting.is_empty()
    }

    /// Lets the builds that wait here go on.
    pub(crate) async fn open(&self) {
        let waiting = std::mem::take(&mut *self.state.waiting.lock().unwrap());
        assert!(!waiting.is_empty(), "no build waits at `{}`", self.name);
        for mut socket in waiting {
            // A build that was ended meanwhile does not hear it.
            let _ = socket.write_all(b"open\n").await;
        }
    }
}
