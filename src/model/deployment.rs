//! A deployment's states and steps, and what may change them.

use super::{IllegalMove, Kind, words};

words! {
    /// Where a deployment stands.
    DeploymentState {
        /// It waits for its turn.
        Pending = "pending",
        /// Its steps are being done.
        Starting = "starting",
        /// Visitors reach it.
        Live = "live",
        /// Its successor is live; what it had begun may finish.
        Draining = "draining",
        /// It is gone, and nothing of it is left.
        Retired = "retired",
        /// It never went live; the row says why.
        Failed = "failed",
        /// It was called off before it went live.
        Cancelled = "cancelled",
        /// It would have been the running version once more.
        Noop = "noop",
    }
}

words! {
    /// Something that happens to a deployment.
    DeploymentEvent {
        /// The deployer takes it.
        Start = "start",
        /// It equals the live version.
        Skip = "skip",
        /// Visitors reach it from now on.
        GoLive = "go_live",
        /// Its successor went live.
        Replace = "replace",
        /// All it had is given back, after a failure.
        Fail = "fail",
        /// All it had is given back, after being called off.
        Cancel = "cancel",
        /// All it had is given back, at the end of its life.
        Retire = "retire",
    }
}

words! {
    /// The end a deployment is on its way to, once it has given everything back.
    Ending {
        /// It failed.
        Failed = "failed",
        /// It was called off.
        Cancelled = "cancelled",
        /// It was replaced or torn down.
        Retired = "retired",
    }
}

words! {
    /// What is to be done next for a deployment. Each says *ensure*: doing it twice is doing it once.
    Step {
        /// Have a port, and the databases it asks for.
        Allocate = "allocate",
        /// Have the environment file.
        WriteEnv = "write_env",
        /// Have the unit file.
        InstallUnit = "install_unit",
        /// Have the unit started.
        StartUnit = "start_unit",
        /// Know that it is healthy.
        AwaitHealthy = "await_healthy",
        /// Send visitors to it. The point of no return.
        SwitchRoute = "switch_route",
        /// Let requests that it has begun come to their end.
        Drain = "drain",
        /// Have the unit stopped.
        Stop = "stop",
        /// Have nothing left: unit file, environment file, link, port.
        Release = "release",
    }
}

/// What follows a step that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another step.
    Step(Step),
    /// The deployment is live, and has nothing to do.
    Live,
    /// The deployment has ended.
    Ended,
}

/// What follows a step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Give everything back: the deployment fails.
    TearDown,
    /// Do it again later: there is no way back from here.
    Retry,
}

impl Step {
    /// The step after this one, for a target of `kind`. A site has no process.
    #[must_use]
    pub fn next(self, kind: Kind) -> Next {
        match (self, kind) {
            (Self::Allocate, Kind::Service) => Next::Step(Self::WriteEnv),
            (Self::Allocate, Kind::Site) => Next::Step(Self::SwitchRoute),
            (Self::WriteEnv, _) => Next::Step(Self::InstallUnit),
            (Self::InstallUnit, _) => Next::Step(Self::StartUnit),
            (Self::StartUnit, _) => Next::Step(Self::AwaitHealthy),
            (Self::AwaitHealthy, _) => Next::Step(Self::SwitchRoute),
            (Self::SwitchRoute, _) => Next::Live,
            (Self::Drain, _) => Next::Step(Self::Stop),
            (Self::Stop, _) => Next::Step(Self::Release),
            (Self::Release, _) => Next::Ended,
        }
    }

    /// What a failure of this step leads to.
    #[must_use]
    pub fn on_failure(self) -> OnFailure {
        match self {
            Self::Allocate | Self::WriteEnv | Self::InstallUnit | Self::StartUnit | Self::AwaitHealthy => {
                OnFailure::TearDown
            }
            Self::SwitchRoute | Self::Drain | Self::Stop | Self::Release => OnFailure::Retry,
        }
    }
}

impl Ending {
    /// The event that records this end.
    #[must_use]
    pub fn event(self) -> DeploymentEvent {
        match self {
            Self::Failed => DeploymentEvent::Fail,
            Self::Cancelled => DeploymentEvent::Cancel,
            Self::Retired => DeploymentEvent::Retire,
        }
    }
}

impl DeploymentState {
    /// The state after `event`.
    ///
    /// # Errors
    /// When the rules do not allow it.
    pub fn apply(self, event: DeploymentEvent) -> Result<Self, IllegalMove> {
        use DeploymentEvent as E;
        use DeploymentState as S;
        match (self, event) {
            (S::Pending, E::Start) => Ok(S::Starting),
            (S::Pending, E::Skip) => Ok(S::Noop),
            (S::Starting, E::GoLive) => Ok(S::Live),
            (S::Live, E::Replace) => Ok(S::Draining),
            (S::Pending | S::Starting, E::Fail) => Ok(S::Failed),
            (S::Pending | S::Starting, E::Cancel) => Ok(S::Cancelled),
            (S::Pending | S::Starting | S::Live | S::Draining, E::Retire) => Ok(S::Retired),
            (S::Pending, E::GoLive | E::Replace)
            | (S::Starting, E::Start | E::Skip | E::Replace)
            | (S::Live, E::Start | E::Skip | E::GoLive | E::Fail | E::Cancel)
            | (S::Draining, E::Start | E::Skip | E::GoLive | E::Replace | E::Fail | E::Cancel)
            | (S::Retired | S::Failed | S::Cancelled | S::Noop, _) => {
                Err(IllegalMove { thing: "deployment", from: self.word(), event: event.word() })
            }
        }
    }

    /// Whether nothing can happen to it any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Pending | Self::Starting | Self::Live | Self::Draining => false,
            Self::Retired | Self::Failed | Self::Cancelled | Self::Noop => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    #[test]
    fn a_deployment_moves_only_along_the_contract() {
        let mut legal = Vec::new();
        for &from in DeploymentState::ALL {
            for &event in DeploymentEvent::ALL {
                if let Ok(to) = from.apply(event) {
                    legal.push(format!("{from} -> {to}"));
                }
            }
        }
        assert_eq!(
            legal,
            [
                "pending -> starting",
                "pending -> noop",
                "pending -> failed",
                "pending -> cancelled",
                "pending -> retired",
                "starting -> live",
                "starting -> failed",
                "starting -> cancelled",
                "starting -> retired",
                "live -> draining",
                "live -> retired",
                "draining -> retired",
            ]
        );
    }

    #[test]
    fn the_steps_of_each_kind_lead_to_live_and_then_to_the_end() {
        let walk = |kind, mut step: Step| {
            let mut words = vec![step.word()];
            while let Next::Step(next) = step.next(kind) {
                words.push(next.word());
                step = next;
            }
            words.join(" ")
        };
        assert_eq!(
            walk(Kind::Service, Step::Allocate),
            "allocate write_env install_unit start_unit await_healthy switch_route"
        );
        assert_eq!(walk(Kind::Site, Step::Allocate), "allocate switch_route");
        assert_eq!(walk(Kind::Service, Step::Drain), "drain stop release");
        assert_eq!(Step::SwitchRoute.next(Kind::Site), Next::Live);
        assert_eq!(Step::Release.next(Kind::Service), Next::Ended);
    }

    proptest! {
        #[test]
        fn whatever_happens_to_a_deployment_it_is_live_at_most_once_and_ends_at_most_once(
            events in proptest::collection::vec(select(DeploymentEvent::ALL), 0..60)
        ) {
            let (mut state, mut lives, mut ends) = (DeploymentState::Pending, 0, 0);
            for event in events {
                let Ok(next) = state.apply(event) else { continue };
                prop_assert!(!state.is_terminal(), "{} left its end by {}", state, event);
                lives += u32::from(next == DeploymentState::Live);
                ends += u32::from(next.is_terminal());
                let unseen = matches!(next, DeploymentState::Failed | DeploymentState::Cancelled | DeploymentState::Noop);
                prop_assert!(!(unseen && lives > 0), "{} after visitors had reached it", next);
                prop_assert!(next != DeploymentState::Draining || lives == 1);
                state = next;
            }
            prop_assert!(lives <= 1);
            prop_assert_eq!(ends, u32::from(state.is_terminal()));
        }

        /// Each step is done, fails, or is repeated after a crash; a failure that can be taken back tears down.
        #[test]
        fn the_steps_of_a_deployment_come_to_an_end(
            kind in select(Kind::ALL),
            from in select(Step::ALL),
            outcomes in proptest::collection::vec(select(&["done", "failed", "crashed"][..]), 0..200),
        ) {
            let (mut step, mut done, mut torn_down) = (from, 0, 0);
            for outcome in outcomes {
                match (outcome, step.on_failure()) {
                    ("done", _) => {
                        done += 1;
                        match step.next(kind) {
                            Next::Step(next) => step = next,
                            Next::Live | Next::Ended => break,
                        }
                    }
                    // Gives back what it has; there is no second teardown within one.
                    ("failed", OnFailure::TearDown) => {
                        torn_down += 1;
                        step = Step::Stop;
                    }
                    _ => {}
                }
            }
            prop_assert!(torn_down <= 1);
            prop_assert!(done <= Step::ALL.len(), "{} steps were done", done);
        }
    }
}
