//! Every step of a deployment: crashed after its effect, failed, and done twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kennel::deployer::{Interrupt, Interruption};
use kennel::model::deployment::OnFailure;
use kennel::model::{DeploymentState as S, Step};
use tokio::sync::Notify;

use crate::harness::{Harness, Script, commit};

/// Where in the life of two versions a step is met.
struct Scene {
    /// Interrupts once, at this step.
    interrupt: Interrupt,
    /// Told when it has.
    reached: Arc<Notify>,
    armed: Arc<AtomicBool>,
}

impl Scene {
    fn at(step: Step, interruption: Interruption) -> Self {
        let (reached, armed) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let interrupt = Interrupt::by({
            let (reached, armed) = (reached.clone(), armed.clone());
            move |_, at| {
                if at == step && armed.swap(false, Ordering::SeqCst) {
                    reached.notify_one();
                    interruption
                } else {
                    Interruption::None
                }
            }
        });
        Self { interrupt, reached, armed }
    }

    /// A harness with a first version live, and a second pushed into the interruption.
    async fn play(&self) -> Harness {
        let mut harness = Harness::start_with(self.interrupt.clone()).await;
        harness.deploy("main", &commit('a'), Script::api("1")).await;
        self.armed.store(true, Ordering::SeqCst);
        harness.script(&commit('b'), Script::api("2"));
        let (status, _) = harness.push("main", &commit('b')).await;
        assert_eq!(status, 202);
        self.reached.notified().await;
        harness
    }
}

async fn serves(harness: &Harness, version: &str) -> bool {
    let (status, body) = harness.get("api-main.shop.example.com", "/").await;
    status == 200 && body.contains(crate::harness::store_path("api", version).as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_any_step_is_made_good_by_the_next_start() {
    for &step in Step::ALL {
        let mut harness = Scene::at(step, Interruption::Crash).play().await;
        harness.crash();
        harness.boot(Interrupt::never()).await;
        harness.until_quiet().await;
        assert_eq!(harness.deployment_states().await, [S::Retired, S::Live], "{step}");
        assert!(serves(&harness, "2").await, "{step}");
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_any_step_leaves_a_clean_machine() {
    for &step in Step::ALL {
        let harness = Scene::at(step, Interruption::Fail).play().await;
        harness.until_quiet().await;
        match step.on_failure() {
            OnFailure::TearDown => {
                assert_eq!(harness.deployment_states().await, [S::Live, S::Failed], "{step}");
                assert!(serves(&harness, "1").await, "{step}");
                let reason = harness.deployments().await[0].reason.clone().unwrap();
                assert!(reason.contains(&format!("interrupted after `{step}`")), "{reason}");
            }
            OnFailure::Retry => {
                assert_eq!(harness.deployment_states().await, [S::Retired, S::Live], "{step}");
                assert!(serves(&harness, "2").await, "{step}");
            }
        }
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doing_any_step_twice_is_doing_it_once() {
    for &step in Step::ALL {
        let harness = Scene::at(step, Interruption::Repeat).play().await;
        harness.until_quiet().await;
        assert_eq!(harness.deployment_states().await, [S::Retired, S::Live], "{step}");
        assert!(serves(&harness, "2").await, "{step}");
        harness.finish().await;
    }
}
