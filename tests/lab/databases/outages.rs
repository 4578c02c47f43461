//! Servers that are away, come back, or have forgotten everything.

use std::time::Duration;

use super::{Databases, app, lab_with_servers, service_asks};
use crate::harness::databases::Valkey;
use crate::harness::{App, Deployment, Lab, LabConfig, api, machine, until};

/// Waits until a deployment of a build waits for a server, and says so.
pub(super) async fn waits(lab: &Lab, build: i64, says: &str) -> Deployment {
    lab.ended_as(build, "success").await;
    until(&format!("the deployment of build {build} waits"), Duration::from_secs(20), async || {
        let deployment = api::build(build).await.deployments.pop()?;
        let detail: serde_json::Value = api::get(&format!("/deployments/{}", deployment.id)).await;
        assert_ne!(deployment.state, "failed", "{:?}", deployment.reason);
        (deployment.state == "starting" && detail["events"].to_string().contains(says)).then_some(deployment)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_can_log_in_again_within_seconds_of_a_restart_of_valkey() {
    let (lab, valkey, _postgres) = lab_with_servers().await;
    let live = lab.deploy_api("hello", "main", &app("one")).await;
    let pid = machine::main_pid(&live.unit()).await;
    assert_eq!(service_asks(&lab, &live, "PING").await, "+PONG");

    valkey.stop().await;
    valkey.start_again().await;
    let begun = std::time::Instant::now();
    until("its user is back", Duration::from_secs(5), async || {
        (service_asks(&lab, &live, "PING").await == "+PONG").then_some(())
    })
    .await;
    println!("the user was back after {} ms", begun.elapsed().as_millis());
    assert_eq!(machine::main_pid(&live.unit()).await, pid);

    // Away for longer, and while kennel itself starts.
    valkey.stop().await;
    lab.kill9().await;
    valkey.start_again().await;
    until("its user is back", Duration::from_secs(5), async || {
        (service_asks(&lab, &live, "PING").await == "+PONG").then_some(())
    })
    .await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_waits_for_postgresql_and_goes_on_once_it_is_back() {
    let (lab, _valkey, postgres) = lab_with_servers().await;
    postgres.stop().await;
    let pushed = lab.push("hello", "main", &app("one")).await;
    let waiting = waits(&lab, pushed.build, "PostgreSQL at 127.0.0.1:5432 cannot be reached").await;
    assert_eq!(waiting.step.as_deref(), Some("allocate"));
    let status = machine::ok("kennel", &["status"]).await;
    println!("{status}");
    assert!(
        status.contains("hello/main/api waits: PostgreSQL at 127.0.0.1:5432 cannot be reached: Connection refused"),
        "{status}"
    );
    // Others need not wait.
    lab.deploy_api("hello", "plain", &App::api("one")).await;

    postgres.start_again().await;
    let live = lab.live(pushed.build, "api").await;
    Databases::of(&live).await.postgres("create table dogs (name text)").await.unwrap();
    let journal = lab.journal().await;
    assert!(journal.contains("is done again in 1 s: PostgreSQL at 127.0.0.1:5432 cannot be reached"), "{journal}");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_commit_overtakes_one_that_waits_for_a_server() {
    let valkey = Valkey::start(16).await;
    let lab = Lab::start(LabConfig::hello().section(&valkey.section())).await;
    valkey.stop().await;
    let pushed = lab.push("hello", "main", &app("one")).await;
    let waiting = waits(&lab, pushed.build, "Valkey at 127.0.0.1:6379 cannot be reached").await;

    let plain = lab.deploy_api("hello", "main", &App::api("two")).await;
    assert_eq!(lab.version(&plain.host).await, "two");
    let overtaken = lab.becomes(waiting.id, "cancelled").await;
    assert!(overtaken.reason().contains("a newer commit came while it waited"), "{}", overtaken.reason());
    valkey.start_again().await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_and_databases_that_are_lost_are_made_again() {
    let (lab, _valkey, postgres) = lab_with_servers().await;
    let live = lab.deploy_api("hello", "main", &app("one")).await;
    let databases = Databases::of(&live).await;
    let name = databases.name();
    postgres
        .run(&format!("drop database \"{name}\" with (force); drop owned by \"{name}\"; drop role \"{name}\""))
        .await;
    databases.postgres("select 1").await.unwrap_err();
    lab.restart().await;
    until("it is back", Duration::from_secs(10), async || databases.postgres("create table dogs (n int)").await.ok())
        .await;

    // Somebody has opened it to all: that does not last.
    postgres
        .run(&format!("grant connect on database \"{name}\" to public; alter role \"{name}\" connection limit -1"))
        .await;
    lab.restart().await;
    until("it is closed", Duration::from_secs(10), async || {
        let open = "select datname::text from pg_database d join pg_roles r on r.rolname = d.datname
                    where r.rolconnlimit = 20 and not (datacl::text like '%{=%' or datacl::text like '%,=%')";
        postgres.names(open).await.contains(&name.to_owned()).then_some(())
    })
    .await;
    let journal = lab.journal().await;
    assert!(!journal.contains("already"), "what changes nothing is no news: {journal}");
    lab.finish().await;
}
