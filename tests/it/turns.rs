//! In which order builds are claimed.

use kennel::model::{BranchRef, Environment};
use kennel::store::{Accepted, BuildOutcome, ClaimedBuild, Push, RunId, Store};
use tempfile::TempDir;

/// The rows alone, and a worker that claims.
struct Queue {
    dir: TempDir,
    store: Store,
    run: RunId,
    pushes: u32,
}

impl Queue {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        Self { dir, store, run: RunId::fresh(), pushes: 0 }
    }

    async fn push(&mut self, project: &str, branch: &str) {
        self.pushes += 1;
        let push = Push {
            project: project.parse().unwrap(),
            branch: BranchRef::head(branch).unwrap(),
            commit: format!("{:040x}", self.pushes).parse().unwrap(),
            title: None,
            environment: if branch == "main" { Environment::Prod } else { Environment::Dev },
        };
        let accepted = self.store.accept_push(None, &push).await.unwrap();
        assert!(matches!(accepted, Accepted::Queued(_)));
    }

    async fn claim(&self) -> Option<ClaimedBuild> {
        self.store.claim_build(&self.run).await.unwrap()
    }

    async fn end(&self, build: &ClaimedBuild) {
        let outcome = BuildOutcome::Failed("it is over".to_owned());
        self.store.finish_build(build, &"example.com".parse().unwrap(), &outcome).await.unwrap();
    }

    /// Claims and ends one build after the other; tells of which branches.
    async fn order(&self) -> Vec<String> {
        let mut order = Vec::new();
        while let Some(build) = self.claim().await {
            order.push(name(&build));
            self.end(&build).await;
        }
        order
    }
}

fn name(build: &ClaimedBuild) -> String {
    format!("{}/{}", build.project, build.branch.name())
}

#[tokio::test]
async fn claims_go_round_the_projects_and_prod_is_first_in_each() {
    let mut queue = Queue::new().await;
    for branch in ["a", "b", "c", "main", "d"] {
        queue.push("busy", branch).await;
    }
    for branch in ["x", "main"] {
        queue.push("calm", branch).await;
    }
    queue.push("third", "y").await;
    assert_eq!(
        queue.order().await,
        ["busy/main", "calm/main", "third/y", "busy/a", "calm/x", "busy/b", "busy/c", "busy/d"]
    );
}

#[tokio::test]
async fn a_project_that_floods_has_one_claim_between_those_of_another() {
    let mut queue = Queue::new().await;
    let mut order = Vec::new();
    for round in 0..20 {
        for n in 0..5 {
            queue.push("flood", &format!("branch-{round}-{n}")).await;
        }
        queue.push("calm", "topic").await;
        for _ in 0..2 {
            let build = queue.claim().await.unwrap();
            order.push(build.project.to_string());
            queue.end(&build).await;
        }
    }
    assert!(order.chunks(2).all(|turns| turns.contains(&"calm".to_owned())), "{order:?}");
}

#[tokio::test]
async fn a_clock_that_is_put_back_costs_no_project_its_turn() {
    let mut queue = Queue::new().await;
    queue.push("ahead", "a").await;
    queue.push("behind", "a").await;
    let far = i64::MAX / 2;
    queue.store.close().await;
    let path = queue.dir.path().join("kennel.db");
    let mut rows = <sqlx::SqliteConnection as sqlx::Connection>::connect(path.to_str().unwrap()).await.unwrap();
    sqlx::query("update projects set claimed_at = ?").bind(far).execute(&mut rows).await.unwrap();
    queue.store = Store::open(&path).await.unwrap();
    for n in 0..5 {
        queue.push("ahead", &format!("b-{n}")).await;
        queue.push("behind", &format!("b-{n}")).await;
    }
    let order: Vec<_> = queue.order().await.iter().map(|name| name.split_once('/').unwrap().0.to_owned()).collect();
    assert_eq!(order.len(), 12);
    assert!(order.chunks(2).all(|turns| turns[0] != turns[1]), "{order:?}");
}

#[tokio::test]
async fn a_branch_that_builds_does_not_hold_up_its_project() {
    let mut queue = Queue::new().await;
    queue.push("shop", "main").await;
    let running = queue.claim().await.unwrap();
    queue.push("shop", "main").await;
    queue.push("shop", "topic").await;
    let next = queue.claim().await.unwrap();
    assert_eq!((name(&running), name(&next)), ("shop/main".to_owned(), "shop/topic".to_owned()));
    assert!(queue.claim().await.is_none(), "one build of a branch at a time");
    queue.end(&running).await;
    assert_eq!(name(&queue.claim().await.unwrap()), "shop/main");
}

#[tokio::test]
async fn a_branch_that_is_pushed_to_all_the_time_keeps_its_place() {
    let mut queue = Queue::new().await;
    queue.push("shop", "first").await;
    queue.push("shop", "held").await;
    let first = queue.claim().await.unwrap();
    queue.push("shop", "first").await;
    for n in 0..5 {
        queue.push("shop", &format!("later-{n}")).await;
        queue.push("shop", "held").await;
    }
    queue.end(&first).await;
    let order = queue.order().await;
    assert_eq!(order[..3], ["shop/held", "shop/first", "shop/later-0"], "{order:?}");
    assert_eq!(order.len(), 7, "of each branch the newest alone: {order:?}");
}
