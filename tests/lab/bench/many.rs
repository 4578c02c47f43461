//! Hundreds of live deployments and thousands of rows. Only the first of each is really built and deployed; the others
//! are copies of its rows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use http::Method;

use super::{is_wanted, median};
use crate::harness::http::{request, send};
use crate::harness::leftovers::change_rows;
use crate::harness::{App, Lab, ROUTER, machine, until};

/// How many services run when the daemon is killed.
const SERVICES: usize = 200;
/// How many branches there are with 10 sites each, and how many builds of each.
const BRANCHES: usize = 100;
const BUILDS: usize = 50;
/// How often `kennel status` is asked.
const RUNS: usize = 20;

/// A service so small that hundreds of it fit into the machine.
const TINY: &str = r#"#!/usr/bin/perl
use strict;
use warnings;
use Socket;
socket(my $listener, PF_INET, SOCK_STREAM, 0) or die "socket: $!";
setsockopt($listener, SOL_SOCKET, SO_REUSEADDR, 1);
bind($listener, sockaddr_in($ENV{PORT}, INADDR_LOOPBACK)) or die "bind: $!";
listen($listener, 128) or die "listen: $!";
while (accept(my $client, $listener)) {
    sysread($client, my $request, 8192);
    syswrite($client, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    close($client);
}
"#;

/// Copies of the service `api` of `main`, live, each with a port of its own.
const COPY_SERVICES: &str = "
    begin;
    create temp table copies as with recursive n (n) as (select 1 union all select n + 1 from n where n < @COPIES)
        select n, 'copy-' || n as name from n;
    create temp table first as select d.*, t.branch_id, t.kind from deployments d join targets t on t.id = d.target_id
        where t.name = 'api' and d.state = 'live';
    insert into targets (branch_id, name, kind, host, tag, user_name, created_at)
        select branch_id, name, kind, name || '-main.hello.lab.test', 'kennel-hello-main-' || name,
               'kennel-hello-main-' || name, created_at from copies, first;
    insert into artifacts (build_id, name, kind, state, store_path, program, settings, nix_ms, rooted)
        select a.build_id, c.name, a.kind, a.state, a.store_path, a.program, a.settings, a.nix_ms, 0
        from copies c, first f join artifacts a on a.build_id = f.build_id and a.name = 'api';
    insert into deployments (target_id, build_id, state, step, created_at, started_at, live_at)
        select t.id, f.build_id, 'live', null, f.created_at, f.started_at, f.live_at
        from copies c join targets t on t.name = c.name, first f;
    insert into ports (port, deployment_id)
        select 18100 + c.n, d.id from copies c join targets t on t.name = c.name join deployments d on d.target_id = t.id;
    insert into routes (host, target_id, deployment_id)
        select t.host, t.id, d.id from copies c join targets t on t.name = c.name
        join deployments d on d.target_id = t.id;
    commit;
";

/// Branches with sites, copies of the site `web` of `main`: of each build a deployment of each site, the last one live.
const COPY_BRANCHES: &str = "
    begin;
    create temp table copies as with recursive n (n) as (select 1 union all select n + 1 from n where n < @BRANCHES)
        select n, 'branch-' || n as name from n;
    create temp table sites as with recursive n (n) as (select 1 union all select n + 1 from n where n < 10)
        select n, 'site-' || n as name from n;
    create temp table turns as with recursive n (n) as (select 1 union all select n + 1 from n where n < @BUILDS)
        select n from n;
    create temp table first as select d.*, a.store_path, a.settings, b.commit_sha, b.queued_at
        from deployments d join targets t on t.id = d.target_id join builds b on b.id = d.build_id
        join artifacts a on a.build_id = d.build_id and a.name = t.name where t.name = 'web' and d.state = 'live';
    insert into branches (project, ref, slug, environment, wanted, pushed_at)
        select 'hello', 'heads/' || name, name, 'dev', 1, queued_at from copies, first;
    insert into targets (branch_id, name, kind, host, tag, user_name, created_at)
        select b.id, s.name, 'site', s.name || '-' || c.name || '.hello.lab.test',
               'kennel-hello-' || c.name || '-' || s.name, 'kennel-' || c.name || '-' || s.name, f.created_at
        from copies c join branches b on b.slug = c.name, sites s, first f;
    insert into builds (branch_id, commit_sha, title, state, reason, queued_at, started_at, finished_at)
        select b.id, f.commit_sha, 'Change something', iif(turns.n % 7 = 6, 'failed', 'success'),
               iif(turns.n % 7 = 6, 'site-1: the builder failed', null), f.queued_at, f.queued_at, f.queued_at
        from turns, copies c join branches b on b.slug = c.name, first f order by turns.n;
    insert into deliveries (project, id, event, build_id, received_at)
        select 'hello', 'copy-' || b.id, 'push', b.id, b.queued_at from builds b join branches br on br.id = b.branch_id
        where br.slug like 'branch-%';
    insert into artifacts (build_id, name, kind, state, store_path, settings, nix_ms, rooted)
        select b.id, s.name, 'site', 'built', f.store_path, f.settings, 1, 0
        from builds b join branches br on br.id = b.branch_id, sites s, first f where br.slug like 'branch-%';
    insert into deployments (target_id, build_id, state, step, created_at, started_at, live_at, finished_at)
        select t.id, b.id, iif(n.id is null, 'live', 'retired'), null, f.created_at, f.created_at, f.created_at,
               iif(n.id is null, null, f.created_at)
        from builds b join branches br on br.id = b.branch_id join targets t on t.branch_id = br.id
        left join builds n on n.branch_id = br.id and n.id = (select max(id) from builds where branch_id = br.id and id > b.id),
        first f where br.slug like 'branch-%' order by b.id;
    insert into deployment_events (deployment_id, at, step, outcome, duration_ms)
        select d.id, d.created_at, step.column1, 'done', 1
        from deployments d, (values ('allocate'), ('switch_route'), ('drain'), ('release')) step;
    insert into routes (host, target_id, deployment_id)
        select t.host, t.id, d.id from targets t join deployments d on d.target_id = t.id
        where t.name like 'site-%' and d.state = 'live';
    commit;
";

/// The main process of each service.
async fn services() -> BTreeMap<String, String> {
    let units = machine::own_units().await;
    let units: Vec<_> = units.iter().filter(|unit| unit.contains('@')).map(String::as_str).collect();
    let said = machine::ok("systemctl", &[&["show", "--property=Id,MainPID"], &units[..]].concat()).await;
    let services = said.split("\n\n").map(|unit| {
        let value =
            |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)).expect("systemd tells it").to_owned();
        (value("Id="), value("MainPID="))
    });
    services.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_recovery_of_many_services() {
    if !is_wanted() {
        return;
    }
    let lab = Lab::hello().await;
    let first = lab.deploy_api("hello", "main", &App::api("1").program("api/bin/api", TINY)).await;
    machine::ok("systemctl", &["stop", "kennel.service"]).await;
    change_rows(&COPY_SERVICES.replace("@COPIES", &(SERVICES - 1).to_string())).await;
    let begun = Instant::now();
    machine::ok("systemctl", &["start", "kennel.service"]).await;
    let booted = begun.elapsed();
    let before = services().await;
    assert_eq!(before.len(), SERVICES);
    assert!(before.values().all(|pid| pid != "0"), "{before:?}");

    let mut times = Vec::new();
    for _ in 0..3 {
        machine::ok("systemctl", &["reset-failed", "kennel.service"]).await;
        let old = machine::main_pid("kennel.service").await.to_string();
        machine::ok("kill", &["-9", &old]).await;
        let killed = Instant::now();
        let host = format!("copy-{}-main.hello.lab.test", SERVICES - 1);
        let accepted = until("visitors are let in", Duration::from_secs(20), async || {
            let answer = send(ROUTER, request(Method::GET, &host, "/", "")).await.ok()?;
            answer.expect(200);
            Some(killed.elapsed())
        })
        .await;
        let ready = until("kennel is ready", Duration::from_secs(20), async || {
            let state = machine::ok("systemctl", &["show", "--property=MainPID,ActiveState", "kennel.service"]).await;
            (state.contains("ActiveState=active") && !state.contains(&format!("MainPID={old}\n")))
                .then(|| killed.elapsed())
        })
        .await;
        times.push((accepted, ready));
    }
    assert_eq!(services().await, before, "no service was restarted");
    lab.visit(&first.host, "/").await.expect(200);
    println!("\n{SERVICES} services, none of them running: kennel ready after {booted:?}");
    for (accepted, ready) in times {
        println!("killed: first visitor served after {accepted:?}, rows and machine compared after {ready:?}");
    }
    println!("of which systemd waits 500 ms before it starts kennel again; at most 2 s are wanted");
    lab.abandon();
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_status_of_many_rows() {
    if !is_wanted() {
        return;
    }
    let lab = Lab::hello().await;
    lab.deploy("hello", "main", &App::default().site("web", "page")).await;
    machine::ok("systemctl", &["stop", "kennel.service"]).await;
    let script = COPY_BRANCHES.replace("@BRANCHES", &BRANCHES.to_string()).replace("@BUILDS", &BUILDS.to_string());
    change_rows(&script).await;
    let begun = Instant::now();
    machine::ok("systemctl", &["start", "kennel.service"]).await;
    let started = begun.elapsed();
    let resident = async || machine::resident_kib(machine::main_pid("kennel.service").await) as f64 / 1024.0;
    let fresh = resident().await;
    let mut lines = 0;
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let asked = Instant::now();
        let shown = machine::ok("kennel", &["status"]).await;
        times.push(asked.elapsed().as_secs_f64() * 1000.0);
        lines = shown.lines().count();
    }
    assert!(lines > BRANCHES * 10 + 1, "a heading, and a line for each: {lines} lines");
    println!("\n{} finished builds, {} live targets: ready after {started:?}", BRANCHES * BUILDS, BRANCHES * 10);
    println!("`kennel status`: {:.0} ms (median of {RUNS}; at most 100), {lines} lines", median(times));
    println!("resident: {fresh:.1} MiB fresh, {:.1} MiB after that (at most 60)", resident().await);
    lab.abandon();
}
