//! With kennel's sockets in systemd's hands a restart of kennel refuses nobody, resets nothing and leaves nothing
//! unanswered.

use std::fs;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::http::{Answer, Connection, request, send};
use crate::harness::{App, Lab, LabConfig, ROUTER, api, machine, sockets, until};

/// What clients saw.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answers: usize,
    failures: Vec<String>,
    pub(crate) slowest: Duration,
}

impl Tally {
    fn note(&mut self, outcome: Result<Answer, String>, begun: Instant) {
        self.slowest = self.slowest.max(begun.elapsed());
        match outcome {
            Ok(answer) if answer.status.is_success() => self.answers += 1,
            Ok(answer) => self.failures.push(format!("{}: {}", answer.status, answer.text())),
            Err(err) => self.failures.push(err),
        }
    }

    /// Every request was answered.
    #[track_caller]
    pub(crate) fn expect_no_failure(&self) {
        let failed = self.failures.len();
        assert_eq!(failed, 0, "beside {} answers, such as {:?}", self.answers, &self.failures[..failed.min(3)]);
    }
}

/// Visitors who ask again and again, every second one on a connection that he keeps for as long as it is kept for him.
pub(crate) struct Load {
    clients: JoinSet<Tally>,
    stop: CancellationToken,
}

impl Load {
    /// Begins with so many clients, each of whom sends at least so many requests.
    pub(crate) fn begin(host: &str, clients: usize, requests: usize) -> Self {
        let stop = CancellationToken::new();
        let clients = (0..clients).map(|number| client(host.to_owned(), number % 2 == 0, requests, stop.clone()));
        Self { clients: clients.collect(), stop }
    }

    /// Has them come to their end.
    pub(crate) async fn end(self) -> Tally {
        self.stop.cancel();
        let mut sum = Tally::default();
        for tally in self.clients.join_all().await {
            sum.answers += tally.answers;
            sum.failures.extend(tally.failures);
            sum.slowest = sum.slowest.max(tally.slowest);
        }
        println!("{} answers, the slowest after {} ms", sum.answers, sum.slowest.as_millis());
        sum
    }
}

async fn client(host: String, keeps: bool, requests: usize, stop: CancellationToken) -> Tally {
    let mut tally = Tally::default();
    let mut kept = None;
    while tally.answers < requests || !stop.is_cancelled() {
        let begun = Instant::now();
        let outcome = if keeps { ask(&mut kept, &host).await } else { send(ROUTER, visit(&host)).await };
        tally.note(outcome, begun);
        if tally.failures.len() > 100 {
            break;
        }
    }
    tally
}

fn visit(host: &str) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    request(Method::GET, host, "/", "")
}

/// Begins a request.
fn begin(host: &str, path: &str) -> JoinSet<Result<Answer, String>> {
    JoinSet::from_iter([send(ROUTER, request(Method::GET, host, path, ""))])
}

/// Asks on the connection that is kept, or on a new one after an answer that closed it.
async fn ask(kept: &mut Option<Connection>, host: &str) -> Result<Answer, String> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(ROUTER).await?,
    };
    let answer = connection.send(visit(host)).await?;
    if answer.header("connection") != "close" {
        *kept = Some(connection);
    }
    Ok(answer)
}

/// A kennel whose sockets systemd holds, with a service.
pub(crate) async fn held() -> (Lab, String) {
    let lab = Lab::prepare(LabConfig::hello()).await;
    sockets::hold(&[]).await;
    machine::ok("systemctl", &["start", "kennel.service"]).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    (lab, live.host)
}

async fn done(lab: Lab) {
    lab.finish().await;
    sockets::let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_under_load_fail_no_request_and_no_delivery() {
    let (lab, host) = held().await;
    let delivering = CancellationToken::new();
    let load = Load::begin(&host, 8, 0);
    let mut deliveries = JoinSet::new();
    deliveries.spawn({
        let (delivering, signed) = (delivering.clone(), lab.delivery("hello", "ping", &serde_json::json!({})));
        async move {
            let mut tally = Tally::default();
            while !delivering.is_cancelled() {
                let begun = Instant::now();
                tally.note(send(api::API, api::request_of(&signed)).await, begun);
            }
            tally
        }
    });
    for _ in 0..4 {
        let before = machine::main_pid("kennel.service").await;
        let begun = Instant::now();
        lab.restart().await;
        println!("restarted after {} ms", begun.elapsed().as_millis());
        assert_ne!(machine::main_pid("kennel.service").await, before);
    }
    delivering.cancel();
    load.end().await.expect_no_failure();
    deliveries.join_all().await.remove(0).expect_no_failure();
    done(lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn across_a_restart_what_was_begun_is_answered_and_a_websocket_is_told() {
    let (lab, host) = held().await;
    let mut socket = lab.web_socket(&host).await;
    let mut slow = begin(&host, "/slow");
    let mut idle = Connection::open(ROUTER).await.unwrap();
    idle.send(visit(&host)).await.unwrap().expect(200);
    let mut restart = JoinSet::new();
    restart.spawn(machine::run("systemctl", &["restart", "--no-block", "kennel.service"]));
    until("kennel is being stopped", Duration::from_secs(20), async || {
        (machine::property("kennel.service", "ActiveState").await == "deactivating").then_some(())
    })
    .await;

    // While the slow answer is under way, others are not kept waiting.
    let begun = Instant::now();
    let answer = send(ROUTER, visit(&host)).await.unwrap().expect(200);
    println!("answered after {} ms while a slow answer was under way", begun.elapsed().as_millis());
    assert_eq!(answer.header("connection"), "close");
    assert_eq!(slow.len(), 1);
    assert!(slow.try_join_next().is_none(), "the slow answer is still under way");
    slow.join_all().await.remove(0).expect("a request that was begun is answered").expect(200);
    assert_eq!(socket.closed().await, Some(1001));
    restart.join_all().await;
    assert_eq!(lab.version(&host).await, "one");
    done(lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_while_kennel_is_dead_is_served_by_the_next_one() {
    let (lab, host) = held().await;
    let dead = machine::main_pid("kennel.service").await;
    // Until the process is gone it would not be dead: nobody is to come before that.
    machine::ok("kill", &["-9", &dead.to_string()]).await;
    until("the process is gone", Duration::from_secs(10), async || {
        (!fs::exists(format!("/proc/{dead}")).unwrap()).then_some(())
    })
    .await;
    let mut visitors: JoinSet<_> = (0..20)
        .map(|_| {
            let request = visit(&host);
            async move { send(ROUTER, request).await }
        })
        .collect();
    let operator = api::try_ask(Method::GET, "/healthz").await;
    while let Some(answer) = visitors.join_next().await {
        answer.unwrap().expect("nobody is refused").expect(200);
    }
    operator.expect("nor is an operator").expect(200);
    assert_ne!(machine::main_pid("kennel.service").await, dead);
    done(lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_no_key_names_are_named_in_the_journal() {
    let lab = Lab::prepare(LabConfig::hello()).await;
    sockets::hold(&["127.0.0.1:8888", &ROUTER.to_string()]).await;
    machine::ok("systemctl", &["start", "kennel.service"]).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    // The address is there twice: a connection to either of its sockets is taken.
    for _ in 0..20 {
        assert_eq!(lab.version(&live.host).await, "one");
    }
    let journal = lab.journal().await;
    assert!(journal.contains("kennel.socket holds 127.0.0.1:8888, which is no address of kennel's file"), "{journal}");
    let said = machine::ok("kennel", &["status", "--json"]).await;
    serde_json::from_str::<Value>(&said).expect("the command line comes in by its socket");
    let socket = machine::ok("stat", &["--format=%U %G %a", "/run/kennel/kennel.sock"]).await;
    assert_eq!(socket, "root kennel 660\n");
    done(lab).await;
}

/// Where the program lies in tests that replace it.
const PROGRAM: &str = "/opt/kennel/kennel";

/// As [`held`], of a program that can be replaced.
async fn replaceable() -> (Lab, String) {
    let lab = Lab::prepare(LabConfig::hello()).await;
    upgrade().await;
    fs::create_dir_all("/run/systemd/system/kennel.service.d").unwrap();
    let unit = format!("[Service]\nExecStart=\nExecStart={PROGRAM} daemon\n");
    fs::write("/run/systemd/system/kennel.service.d/program.conf", unit).unwrap();
    sockets::hold(&[]).await;
    machine::ok("systemctl", &["start", "kennel.service"]).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    (lab, live.host)
}

/// Installs the program anew.
async fn upgrade() {
    machine::ok("install", &["-D", "-m", "755", "/usr/bin/kennel", PROGRAM]).await;
}

async fn gone(pid: u32) {
    until(&format!("process {pid} ends"), Duration::from_secs(20), async || {
        (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_after_an_upgrade_hands_over_and_cuts_nothing() {
    let (lab, host) = replaceable().await;
    let mut socket = lab.web_socket(&host).await;
    let slow = begin(&host, "/slow");
    let load = Load::begin(&host, 8, 0);
    let mut processes = vec![machine::main_pid("kennel.service").await];
    for _ in 0..2 {
        upgrade().await;
        machine::ok("systemctl", &["reload", "kennel.service"]).await;
        processes.push(machine::main_pid("kennel.service").await);
        assert_ne!(processes[processes.len() - 2], processes[processes.len() - 1], "another process has taken over");
        socket.echo("still there?").await.expect("a WebSocket is not cut");
    }
    load.end().await.expect_no_failure();
    slow.join_all().await.remove(0).expect("a request that was begun is answered").expect(200);
    // The new one is a whole kennel.
    lab.deploy_api("hello", "topic", &App::api("two")).await;
    assert_eq!(machine::property("kennel.service", "ActiveState").await, "active");
    let mut younger = lab.web_socket(&host).await;
    socket.echo("still there?").await.expect("a WebSocket is not cut");

    // A restart ends what all of them still serve, each process with it; what was begun is answered all the same.
    upgrade().await;
    let mut slow = begin(&host, "/slow?10");
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    processes.push(machine::main_pid("kennel.service").await);
    assert!(slow.try_join_next().is_none(), "the slow answer is still under way, two processes before the last");
    lab.restart().await;
    slow.join_all().await.remove(0).expect("a request that was begun is answered").expect(200);
    assert_eq!((socket.closed().await, younger.closed().await), (Some(1001), Some(1001)));
    for process in processes {
        gone(process).await;
    }
    assert_eq!(lab.version(&host).await, "one");

    let socket = lab.web_socket(&host).await;
    let old = machine::main_pid("kennel.service").await;
    upgrade().await;
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    drop(socket);
    gone(old).await;
    // systemd watches over the new process as over any.
    lab.kill9().await;
    assert_eq!(lab.version(&host).await, "one");
    done(lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_program_that_cannot_start_leaves_the_old_one_serving() {
    let (lab, host) = replaceable().await;
    let old = machine::main_pid("kennel.service").await;
    fs::write("/opt/kennel/faulty", "#!/bin/sh\nexit 3\n").unwrap();
    machine::ok("install", &["-m", "755", "/opt/kennel/faulty", PROGRAM]).await;
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    assert_eq!(machine::main_pid("kennel.service").await, old);
    assert_eq!(lab.version(&host).await, "one");
    let journal = lab.journal().await;
    assert!(journal.contains("Kept the old program: /opt/kennel/kennel did not start"), "{journal}");
    upgrade().await;
    done(lab).await;
}
