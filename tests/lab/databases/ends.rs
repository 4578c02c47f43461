//! The end of a branch, and what has no branch.

use std::time::Duration;

use sqlx::{Connection as _, Executor as _};

use super::{Databases, app, lab_with_servers, service_asks};
use crate::harness::leftovers::{change_rows, rows};
use crate::harness::until;

/// How long kennel may take to give databases back.
const GIVE_BACK_MAX: Duration = Duration::from_secs(20);

/// Changes one of kennel's rows behind its back.
async fn change_row(statement: &str) {
    assert_eq!(change_rows(statement).await, 1, "{statement}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_branch_leaves_is_emptied_and_kept_for_7_days_and_it_comes_back_to_nothing() {
    let (lab, valkey, postgres) = lab_with_servers().await;
    let keeper = lab.deploy_api("hello", "main", &app("one")).await;
    let one = lab.deploy_api("hello", "topic", &app("one")).await;
    let old = Databases::of(&one).await;
    let (number, name) = (old.number(), old.name().to_owned());
    assert_eq!(service_asks(&lab, &one, "SET,dog,rex").await, "+OK");
    assert_eq!(service_asks(&lab, &keeper, "SET,cat,tom").await, "+OK");
    old.postgres("create table dogs (name text); insert into dogs values ('rex')").await.unwrap();
    let mut left_open = old.connect(None).await.unwrap();

    lab.delete_branch("hello", "topic").await.expect(202);
    let renamed = format!("{name}_trash");
    until("its databases are given back", GIVE_BACK_MAX, async || {
        let renamed = postgres.databases().await.contains(&renamed);
        (renamed && !valkey.users().await.contains(&format!("kennel-{number}"))).then_some(())
    })
    .await;
    assert_eq!(valkey.size(number).await, 0);
    assert_eq!(rows("select number from valkey_numbers").await, ["1"]);
    assert!(left_open.execute("select 1").await.is_err(), "connections end");
    assert!(old.connect(None).await.is_err() && old.connect(Some("postgres")).await.is_err(), "it cannot log in");
    assert!(old.valkey(&["PING"]).await.is_err());

    let two = lab.deploy_api("hello", "topic", &app("one")).await;
    let new = Databases::of(&two).await;
    assert_ne!(new.name(), name);
    assert_eq!(service_asks(&lab, &two, "GET,dog").await, "$-1");
    assert!(new.postgres("select * from dogs").await.unwrap_err().contains("does not exist"));
    assert_eq!(service_asks(&lab, &keeper, "GET,cat").await, "tom");

    // The end came twice: kennel died before it had noted the first.
    change_row("update postgres_databases set state = 'ended' where state = 'renamed'").await;
    change_row("update postgres_databases set ended_at = ended_at - 6 * 86400000 where state = 'ended'").await;
    lab.restart().await;
    until("it is noted", GIVE_BACK_MAX, async || {
        (rows("select name from postgres_databases where state = 'renamed'").await == [name.as_str()]).then_some(())
    })
    .await;
    assert!(postgres.databases().await.contains(&renamed), "6 days are not 7");
    let kept = "postgres://lab:lab@127.0.0.1:5432/".to_owned() + &renamed;
    let kept = sqlx::postgres::PgConnection::connect(&kept).await;
    assert!(kept.is_err(), "not even by mistake does anybody enter it");

    change_row("update postgres_databases set ended_at = ended_at - 86400000 where state = 'renamed'").await;
    lab.restart().await;
    until("it is dropped for good", GIVE_BACK_MAX, async || {
        rows("select name from postgres_databases where state = 'renamed'").await.is_empty().then_some(())
    })
    .await;
    assert!(!postgres.databases().await.contains(&renamed) && !postgres.roles().await.contains(&name));
    new.postgres("select 1").await.expect("the new one is another");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_branch_waits_for_servers_that_are_away_and_holds_up_nobody() {
    let (lab, valkey, postgres) = lab_with_servers().await;
    let one = lab.deploy_api("hello", "topic", &app("one")).await;
    let name = Databases::of(&one).await.name().to_owned();
    valkey.stop().await;
    postgres.stop().await;
    lab.delete_branch("hello", "topic").await.expect(202);
    lab.becomes(one.id, "retired").await;
    lab.deploy_api("hello", "main", &crate::harness::App::api("one")).await;
    assert_eq!(rows("select name from postgres_databases where state = 'ended'").await, [name.as_str()]);

    valkey.start_again().await;
    until("its number is given back", GIVE_BACK_MAX, async || {
        rows("select number from valkey_numbers").await.is_empty().then_some(())
    })
    .await;
    // Nothing tells kennel of this.
    postgres.start_again().await;
    until("its database is given back", GIVE_BACK_MAX, async || {
        (postgres.databases().await == [format!("{name}_trash")]).then_some(())
    })
    .await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_row_names_goes_and_what_is_not_kennels_stays() {
    let (lab, valkey, postgres) = lab_with_servers().await;
    let live = lab.deploy_api("hello", "main", &app("one")).await;
    let own = Databases::of(&live).await.name().to_owned();
    for user in ["kennel-7", "kennel-admin", "kennel-07", "shop"] {
        valkey.ask::<()>(&["ACL", "SETUSER", user, "on", ">x", "~*", "+@all"]).await;
    }
    for number in [7, 8] {
        valkey.fill(number).await;
    }
    postgres.run("create role kennel_lost_main_0123456789ab; create role kennel_lost_role_0123456789ab").await;
    postgres
        .run("grant kennel_lost_main_0123456789ab, kennel_lost_role_0123456789ab to kennel with admin option")
        .await;
    postgres.run("create database kennel_lost_main_0123456789ab owner kennel_lost_main_0123456789ab").await;
    postgres.run("create role kennel_admin; create database kennel_shop; create database shop_0123456789ab").await;

    lab.restart().await;
    until("what is lost is found", GIVE_BACK_MAX, async || {
        let renamed = postgres.databases().await.contains(&"kennel_lost_main_0123456789ab_trash".to_owned());
        (renamed && !valkey.users().await.contains(&"kennel-7".to_owned())).then_some(())
    })
    .await;
    assert_eq!(valkey.size(7).await, 0);
    assert_eq!(valkey.size(8).await, 1, "no user says that this is kennel's");
    let mut users = valkey.users().await;
    users.sort();
    assert_eq!(users, ["kennel-07", "kennel-1", "kennel-admin", "shop"]);
    let mut databases = postgres.databases().await;
    databases.retain(|name| *name != own);
    assert_eq!(databases, ["kennel_lost_main_0123456789ab_trash", "kennel_shop"]);
    let lost = "select rolname::text from pg_roles where rolname like 'kennel_lost%' and rolcanlogin";
    assert!(postgres.names(lost).await.is_empty());
    let journal = lab.journal().await;
    assert!(journal.contains("Emptied and freed Valkey database 7"), "{journal}");
    lab.finish().await;
}
