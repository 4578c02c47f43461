//! Build units: the worker's report is there when the unit ends.

use super::{FakeBuild, FakeMachine, State};
use crate::host::{BuildPhase, BuildUnitSpec, HostError, UnitState};
use crate::model::{BuildId, UnitName};

impl State {
    /// A build's unit is stopped, and reports nothing.
    pub(super) fn end_build(&mut self, unit: &UnitName) {
        if let Some(task) = self.build_units.remove(unit) {
            task.abort();
        }
    }

    pub(super) fn remove_work_dir(&mut self, build: BuildId) {
        self.jobs.remove(&build);
        self.plans.remove(&build);
        self.outputs.remove(&build);
        self.released.remove(&build);
        self.reports.retain(|(of, _), _| *of != build);
    }

    fn finish_build(&mut self, unit: &UnitName, build: BuildId, phase: BuildPhase, plan: FakeBuild) {
        // When it is not there any more, it was stopped in this very moment.
        if self.build_units.remove(unit).is_none() {
            return;
        }
        let report = match phase {
            BuildPhase::Fetch => plan.fetch,
            BuildPhase::Build => {
                self.outputs.insert(build, plan.outputs);
                plan.build
            }
        };
        if let Some(report) = report {
            self.reports.insert((build, phase), report);
        }
    }
}

impl FakeMachine {
    pub(super) fn start_worker(&self, spec: &BuildUnitSpec) -> Result<(), HostError> {
        let (unit, build, phase) = (spec.unit(), spec.build, spec.phase);
        let Some(job) = self.state().jobs.get(&build).cloned() else {
            return Err(HostError::new(format!("start the unit `{unit}`"), "it has no work directory"));
        };
        let known = self.state().plans.get(&build).cloned();
        let plan = known.unwrap_or_else(|| (self.inner.worker)(&job));
        let mut state = self.state();
        if state.build_units.contains_key(&unit) {
            return Ok(());
        }
        let left = plan.stillborn.saturating_sub(1);
        state.plans.insert(build, FakeBuild { stillborn: left, ..plan.clone() });
        state.reports.remove(&(build, phase));
        if plan.stillborn > 0 {
            return Ok(());
        }
        let (machine, of, mut changed) = (self.downgrade(), unit.clone(), self.inner.changed.subscribe());
        let task = self.spawn(async move {
            if phase == BuildPhase::Build {
                while machine().is_some_and(|machine| !machine.state().released.contains(&build)) {
                    // The sender is the machine's: gone, there is nothing to wait for.
                    if changed.changed().await.is_err() {
                        return;
                    }
                }
                if let Some(gate) = &plan.gate {
                    gate.pass().await;
                }
            }
            if let Some(machine) = machine() {
                machine.state().finish_build(&of, build, phase, plan);
                machine.inner.changed.send_replace(());
            }
        });
        state.build_units.insert(unit, task);
        Ok(())
    }

    /// A way back to this machine for its own tasks, which must not keep it alive.
    fn downgrade(&self) -> impl Fn() -> Option<Self> + Send + 'static {
        let inner = std::sync::Arc::downgrade(&self.inner);
        move || inner.upgrade().map(|inner| Self { inner })
    }

    pub(super) async fn wait(&self, unit: &UnitName) -> UnitState {
        let mut changed = self.inner.changed.subscribe();
        let mut ran = false;
        loop {
            match self.state().unit_state(unit) {
                UnitState::Absent if ran => return UnitState::Dead { result: "success".to_owned() },
                ended @ (UnitState::Dead { .. } | UnitState::Absent) => return ended,
                _ => ran = true,
            }
            // The sender is ours: it cannot be gone.
            let _ = changed.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Gate, Snapshot};
    use super::*;
    use crate::host::{BuildJob, Machine as _};

    fn job(build: BuildId) -> BuildJob {
        BuildJob {
            build,
            project: "p".parse().unwrap(),
            repo_url: "https://forge.example.com/me/p.git".to_owned(),
            remote_ref: "refs/heads/main".to_owned(),
            commit: "0123456789012345678901234567890123456789".parse().unwrap(),
            allowed_uris: Vec::new(),
            allow_ifd: false,
            max_parallel: 1,
            log_limit_bytes: 1,
            timeout_secs: 1,
        }
    }

    fn spec(build: BuildId, phase: BuildPhase) -> BuildUnitSpec {
        BuildUnitSpec {
            build,
            phase,
            project: "p".parse().unwrap(),
            credentials: Vec::new(),
            repo_url: String::new(),
            timeout_secs: 1,
        }
    }

    #[tokio::test]
    async fn a_build_reports_once_its_gate_is_open() {
        let (gate, build) = (Gate::new(), BuildId(3));
        let held = gate.clone();
        let machine = FakeMachine::new(move |job| FakeBuild {
            fetch: Some(b"fetched".to_vec()),
            build: Some(job.repo_url.clone().into_bytes()),
            outputs: [("api".parse().unwrap(), "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-api".parse().unwrap())]
                .into(),
            gate: Some(held.clone()),
            stillborn: 0,
        });
        machine.ensure_build_dirs(build, &job(build)).await.unwrap();
        let fetch = spec(build, BuildPhase::Fetch);
        machine.start_build(&fetch).await.unwrap();
        machine.wait_unit(&fetch.unit()).await.unwrap();
        assert_eq!(machine.build_report(build, BuildPhase::Fetch).await.unwrap(), Some(b"fetched".to_vec()));

        let unit = spec(build, BuildPhase::Build);
        machine.start_build(&unit).await.unwrap();
        machine.release_build(build).await.unwrap();
        gate.reached().await;
        assert_eq!(machine.build_report(build, BuildPhase::Build).await.unwrap(), None);
        let after_a_restart_of_the_daemon = machine.clone();
        gate.open();
        after_a_restart_of_the_daemon.wait_unit(&unit.unit()).await.unwrap();
        assert!(machine.build_report(build, BuildPhase::Build).await.unwrap().is_some());
        machine.build_output(build, &"api".parse().unwrap()).await.unwrap();
        machine.build_output(build, &"web".parse().unwrap()).await.unwrap_err();
        machine.remove_work_dir(build).await.unwrap();
        machine.remove_log_dir(build).await.unwrap();
        assert_eq!(machine.snapshot(), Snapshot::default());
    }

    #[tokio::test]
    async fn a_stopped_build_reports_nothing() {
        let (gate, build) = (Gate::new(), BuildId(4));
        let held = gate.clone();
        let plan =
            move |_: &BuildJob| FakeBuild { build: Some(Vec::new()), gate: Some(held.clone()), ..FakeBuild::default() };
        let machine = FakeMachine::new(plan);
        machine.ensure_build_dirs(build, &job(build)).await.unwrap();
        let spec = spec(build, BuildPhase::Build);
        machine.start_build(&spec).await.unwrap();
        machine.release_build(build).await.unwrap();
        gate.reached().await;
        let unit = spec.unit();
        let (ended, stopped) = tokio::join!(machine.wait_unit(&unit), machine.stop_unit(&unit));
        stopped.unwrap();
        ended.unwrap();
        gate.open();
        assert_eq!(machine.build_report(build, BuildPhase::Build).await.unwrap(), None);
    }
}
