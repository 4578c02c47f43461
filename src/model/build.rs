//! A build's states, and what may change them.

use super::{BranchRef, IllegalMove, words};

words! {
    /// Where a build stands.
    BuildState {
        /// It waits for a worker.
        Queued = "queued",
        /// A worker has it.
        Building = "building",
        /// Every artifact was made.
        Success = "success",
        /// An artifact, or all of it, could not be made.
        Failed = "failed",
        /// Somebody asked for it to stop.
        Cancelled = "cancelled",
        /// A newer commit of the branch came before it started.
        Superseded = "superseded",
    }
}

words! {
    /// What became of one service or site in one build.
    ArtifactState {
        /// Made, and its store path is new to the target.
        Built = "built",
        /// Made, and its store path is one of the target's last 5.
        Unchanged = "unchanged",
        /// Not made; the row says why.
        Failed = "failed",
    }
}

words! {
    /// Why a GC root keeps an artifact.
    RootReason {
        /// Its build has not ended.
        InBuild = "in_build",
        /// A version of it runs, or is on its way up or down.
        Live = "live",
        /// It is one of the last 5 versions of its target that went live.
        Rollback = "rollback",
        /// Nothing needs it: the root goes when kennel looks next.
        Surplus = "surplus",
    }
}

words! {
    /// Something that happens to a build.
    BuildEvent {
        /// A worker takes it.
        Claim = "claim",
        /// The daemon that had it is gone, and so is its unit.
        Requeue = "requeue",
        /// Every artifact was made.
        Succeed = "succeed",
        /// An artifact could not be made.
        Fail = "fail",
        /// An operator, a closed pull request or a deleted branch wants it stopped.
        Cancel = "cancel",
        /// A newer commit of its branch arrived.
        Supersede = "supersede",
    }
}

words! {
    /// Which secrets and rules apply to a branch.
    Environment {
        /// The default branch.
        Prod = "prod",
        /// The branch called `staging`.
        Staging = "staging",
        /// Any other branch.
        Dev = "dev",
        /// A pull request.
        Preview = "preview",
    }
}

impl BuildState {
    /// The state after `event`.
    ///
    /// # Errors
    /// When the rules do not allow it.
    pub fn apply(self, event: BuildEvent) -> Result<Self, IllegalMove> {
        use BuildEvent as E;
        use BuildState as S;
        match (self, event) {
            (S::Queued, E::Claim) => Ok(S::Building),
            (S::Queued, E::Supersede) => Ok(S::Superseded),
            (S::Queued | S::Building, E::Cancel) => Ok(S::Cancelled),
            (S::Building, E::Requeue) => Ok(S::Queued),
            (S::Building, E::Succeed) => Ok(S::Success),
            (S::Building, E::Fail) => Ok(S::Failed),
            (S::Queued, E::Requeue | E::Succeed | E::Fail)
            | (S::Building, E::Claim | E::Supersede)
            | (S::Success | S::Failed | S::Cancelled | S::Superseded, _) => {
                Err(IllegalMove { thing: "build", from: self.word(), event: event.word() })
            }
        }
    }

    /// Whether nothing can happen to it any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Queued | Self::Building => false,
            Self::Success | Self::Failed | Self::Cancelled | Self::Superseded => true,
        }
    }
}

impl Environment {
    /// The environment of `branch` in a project whose default branch is `default_branch`.
    #[must_use]
    pub fn of(branch: &BranchRef, default_branch: &str) -> Self {
        if branch.is_pull() {
            return Self::Preview;
        }
        match branch.name() {
            name if name == default_branch => Self::Prod,
            name if name == "staging" => Self::Staging,
            _ => Self::Dev,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    #[test]
    fn a_build_moves_only_along_the_contract() {
        let mut legal = Vec::new();
        for &from in BuildState::ALL {
            for &event in BuildEvent::ALL {
                if let Ok(to) = from.apply(event) {
                    legal.push(format!("{from} -{event}-> {to}"));
                }
            }
        }
        assert_eq!(
            legal,
            [
                "queued -claim-> building",
                "queued -cancel-> cancelled",
                "queued -supersede-> superseded",
                "building -requeue-> queued",
                "building -succeed-> success",
                "building -fail-> failed",
                "building -cancel-> cancelled",
            ]
        );
    }

    #[test]
    fn no_event_leaves_a_terminal_state() {
        for &state in BuildState::ALL.iter().filter(|state| state.is_terminal()) {
            assert!(BuildEvent::ALL.iter().all(|&event| state.apply(event).is_err()), "{state}");
        }
    }

    #[test]
    fn only_the_default_branch_is_prod() {
        let head = |name: &str| BranchRef::head(name).unwrap();
        assert_eq!(Environment::of(&head("main"), "main"), Environment::Prod);
        assert_eq!(Environment::of(&head("staging"), "main"), Environment::Staging);
        assert_eq!(Environment::of(&head("staging"), "staging"), Environment::Prod);
        assert_eq!(Environment::of(&head("prod"), "main"), Environment::Dev);
        assert_eq!(Environment::of(&BranchRef::pull(7.try_into().unwrap()), "pr-7"), Environment::Preview);
    }

    proptest! {
        #[test]
        fn whatever_happens_to_a_build_it_ends_at_most_once(
            events in proptest::collection::vec(select(BuildEvent::ALL), 0..40)
        ) {
            let (mut state, mut claimed, mut ended) = (BuildState::Queued, false, 0);
            for event in events {
                let Ok(next) = state.apply(event) else { continue };
                prop_assert!(!state.is_terminal(), "{} left its end by {}", state, event);
                match next {
                    BuildState::Building => claimed = true,
                    BuildState::Queued => claimed = false,
                    BuildState::Success | BuildState::Failed => prop_assert!(claimed, "{} without a worker", next),
                    BuildState::Superseded => prop_assert!(!claimed, "a build that has started is not superseded"),
                    BuildState::Cancelled => {}
                }
                ended += u32::from(next.is_terminal());
                state = next;
            }
            prop_assert_eq!(ended, u32::from(state.is_terminal()));
        }
    }
}
