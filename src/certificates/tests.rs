//! The loop, on jobs that tests give it.

use super::*;
use crate::router::Router;

/// A keeper of a state directory in which nothing is.
async fn keeper(dir: &std::path::Path) -> Keeper {
    let text = format!("base_domain = \"example.com\"\nstate_dir = \"{}\"", dir.display());
    let config: config::Shared = Arc::new(arc_swap::ArcSwap::from_pointee(config::parse(&text).unwrap()));
    let store = Store::open(&dir.join("kennel.db")).await.unwrap();
    let (_, router) = Router::new(router::RouterConfig::default(), store.clone());
    let mark = dns::Mark::of(&store).await.unwrap();
    Keeper::start(Context { store, router, config, mark, dir: dir.to_owned(), bell: Bell::default() }).await.unwrap()
}

#[tokio::test]
async fn a_job_that_panics_frees_its_own_host_and_waits_like_one_that_failed() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = keeper(dir.path()).await;
    let [a, b]: [CertificateName; 2] = ["a.example", "b.example"].map(|name| name.parse().unwrap());
    keeper.ctx.store.note_wanted(&[a.clone(), b.clone()], &[], 0).await.unwrap();
    let rows = keeper.ctx.store.certificates().await.unwrap();
    let order = |row: &CertificateRow| Job::Order(Box::new(row.clone()), "https://ca/dir".to_owned());
    keeper.spawn(order(&rows[0]), async { panic!("as a test has it") });
    keeper.spawn(order(&rows[1]), std::future::pending());
    assert_eq!(keeper.busy(), BTreeSet::from([a, b.clone()]));

    let ended = keeper.jobs.join_next_with_id().await.unwrap();
    keeper.settle(ended).await;

    assert_eq!(keeper.busy(), BTreeSet::from([b]));
    let rows = keeper.ctx.store.certificates().await.unwrap();
    assert_eq!((rows[0].failures, rows[1].failures), (1, 0));
    assert!(rows[0].try_at > now() && rows[0].problem.as_ref().is_some_and(|said| said.contains("panicked")));
}
