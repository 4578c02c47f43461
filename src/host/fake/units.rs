//! Units of deployments: started, stopped, asked about.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use nix::fcntl::{Flock, FlockArg};

use super::server::{self, Listening, Program, Running};
use super::{Behaviour, FakeMachine, Gate, State};
use crate::host::{HostError, Listener, UnitSpec, UnitState, tcp};
use crate::model::{Port, UnitName, UserName};

/// The user of sockets that are nobody's here.
const STRANGER: u32 = 65_534;

/// The same for the same name, among those systemd allocates (`systemd.exec(5)`, `DynamicUser=`).
fn uid_of(user: &UserName) -> u32 {
    let hash = user.as_str().bytes().fold(17u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    61_184 + hash % 4_335
}

impl State {
    pub(super) fn unit_state(&self, unit: &UnitName) -> UnitState {
        match self.running.get(unit) {
            Some(Running::Active(program)) => UnitState::Active { pid: pid_of(&program.spec) },
            Some(Running::Restarting(result)) => UnitState::Restarting { result: result.clone() },
            Some(Running::Dead(result)) => UnitState::Dead { result: result.clone() },
            None if self.build_units.contains_key(unit) => UnitState::Active { pid: 1 },
            None if self.unit_files.contains_key(unit) => UnitState::Dead { result: "success".to_owned() },
            None => UnitState::Absent,
        }
    }

    pub(super) fn uid(&self, unit: &UnitName) -> Option<u32> {
        match self.running.get(unit)? {
            Running::Active(program) => Some(uid_of(&program.spec.user)),
            Running::Restarting(_) | Running::Dead(_) => None,
        }
    }

    fn program_at(&self, port: Port) -> Option<&Program> {
        self.running.values().find_map(|running| match running {
            Running::Active(program) if program.spec.port == port => Some(program),
            _ => None,
        })
    }

    /// Has the port for this machine alone. Machines of other tests, in whatever process, keep off it.
    fn claim(&mut self, port: Port) -> io::Result<bool> {
        if self.ports.contains_key(&port) {
            return Ok(true);
        }
        let dir = std::env::temp_dir().join("kennel-fake-ports");
        std::fs::create_dir_all(&dir)?;
        let file = File::options().create(true).truncate(false).write(true).open(dir.join(port.to_string()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                self.ports.insert(port, lock);
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    fn log(&mut self, unit: &UnitName, line: &str) {
        self.journal.entry(unit.clone()).or_default().push(line.to_owned());
    }
}

fn pid_of(spec: &UnitSpec) -> u32 {
    u32::try_from(spec.deployment.0).unwrap_or(0).wrapping_add(1000)
}

impl FakeMachine {
    fn told(&self) {
        self.inner.changed.send_replace(());
    }

    pub(super) fn listener_of(&self, port: Port) -> Result<Listener, HostError> {
        let fault = |error| HostError::new(format!("look for listeners on port {port}"), error);
        let real = tcp::listener(port).map_err(fault)?;
        let mut state = self.state();
        if let Some(&uid) = state.foreign.get(&port) {
            return Ok(Listener::Owned { uid });
        }
        if let Some(program) = state.program_at(port) {
            let uid = uid_of(&program.spec.user);
            return Ok(if real == Listener::None { real } else { Listener::Owned { uid } });
        }
        if state.claim(port).map_err(fault)? { Ok(real) } else { Ok(Listener::Owned { uid: STRANGER }) }
    }

    pub(super) async fn start(&self, unit: &UnitName) -> Result<(), HostError> {
        let refuse = |why: &str| HostError::new(format!("start the unit `{unit}`"), why);
        let mut state = self.state();
        if matches!(state.running.get(unit), Some(Running::Active(_))) {
            return Ok(());
        }
        let Some(spec) = state.unit_files.get(unit).cloned() else { return Err(refuse("there is no such unit")) };
        if !state.env_files.contains_key(unit) {
            state.running.insert(unit.clone(), Running::Dead("resources".to_owned()));
            return Err(refuse("systemd's job ended as `failed`, the unit as `resources`"));
        }
        state.data_dirs.insert((spec.project.clone(), spec.slug.clone(), spec.service.clone()));
        let behaviour = state.behaviours.get(&spec.store_path).copied().unwrap_or_default();
        let now = |state: &mut State| -> io::Result<Listening> {
            if !state.claim(spec.port)? {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            let listener = TcpListener::bind(("127.0.0.1", spec.port.get()))?;
            listener.set_nonblocking(true)?;
            Ok(Listening::Now(listener))
        };
        let (listening, status) = match behaviour {
            Behaviour::Healthy | Behaviour::RefusesToStop => (now(&mut state), 200),
            Behaviour::Answers(status) => (now(&mut state), status),
            Behaviour::NeverListens => (Ok(Listening::Never), 200),
            Behaviour::Slow(delay) => (Ok(Listening::After(delay, spec.port)), 200),
            Behaviour::ExitsAtOnce(status) => {
                state.log(unit, &format!("ends with status {status}"));
                let result = format!("exit-code, status {status}");
                state.running.insert(unit.clone(), Running::Restarting(result));
                return Ok(());
            }
            Behaviour::CannotStart => {
                state.log(unit, &format!("{}/bin/{}: No such file", spec.store_path, spec.program));
                let result = "exit-code, status 203/EXEC".to_owned();
                state.running.insert(unit.clone(), Running::Restarting(result));
                return Err(refuse("systemd's job ended as `failed`, the unit as `exit-code, status 203/EXEC`"));
            }
        };
        match listening {
            Ok(listening) => {
                let status = Arc::new(AtomicU16::new(status));
                let program = Program { spec: Arc::new(spec), stop: Gate::new(), ended: Gate::new(), status };
                state.running.insert(unit.clone(), Running::Active(program.clone()));
                self.spawn(server::run(program, listening));
            }
            Err(error) => {
                state.log(unit, &format!("cannot listen on {}: {error}", spec.port));
                state.running.insert(unit.clone(), Running::Restarting("exit-code, status 1".to_owned()));
            }
        }
        drop(state);
        self.told();
        Ok(())
    }

    pub(super) async fn stop(&self, unit: &UnitName) -> Result<(), HostError> {
        let program = {
            let mut state = self.state();
            state.end_build(unit);
            match state.running.get(unit) {
                Some(Running::Active(program)) => {
                    let behaviour = state.behaviours.get(&program.spec.store_path);
                    if behaviour == Some(&Behaviour::RefusesToStop) {
                        return Err(HostError::new(format!("stop the unit `{unit}`"), "processes are left: [1]"));
                    }
                    Some(program.clone())
                }
                Some(Running::Restarting(_)) => {
                    state.running.remove(unit);
                    None
                }
                Some(Running::Dead(_)) | None => None,
            }
        };
        if let Some(program) = program {
            program.stop.open();
            program.ended.pass().await;
            self.state().running.remove(unit);
        }
        self.told();
        Ok(())
    }

    /// What systemd and the file system know of a stopped unit goes.
    pub(super) fn forget(&self, unit: &UnitName) {
        let mut state = self.state();
        state.env_files.remove(unit);
        let spec = state.unit_files.remove(unit);
        if !matches!(state.running.get(unit), Some(Running::Active(_))) {
            state.running.remove(unit);
            state.ports.retain(|port, _| spec.as_ref().is_none_or(|spec| spec.port != *port));
        }
    }

    /// Has a unit's program end by itself with this status; systemd does not start it again.
    pub async fn crash_unit(&self, unit: &UnitName, status: i32) {
        let program = match self.state().running.get(unit) {
            Some(Running::Active(program)) => program.clone(),
            _ => return,
        };
        program.stop.open();
        program.ended.pass().await;
        let mut state = self.state();
        state.log(unit, &format!("ends with status {status}"));
        state.running.insert(unit.clone(), Running::Dead(format!("exit-code, status {status}")));
        drop(state);
        self.told();
    }

    /// Turns the machine off and on: nothing runs, and all that lay in `/run` is gone.
    pub async fn reboot(&self) {
        let programs: Vec<Program> = {
            let mut state = self.state();
            let builds: Vec<UnitName> = state.build_units.keys().cloned().collect();
            builds.iter().for_each(|unit| state.end_build(unit));
            state.unit_files.clear();
            state.env_files.clear();
            let running = std::mem::take(&mut state.running);
            running.into_values().filter_map(|running| match running {
                Running::Active(program) => Some(program),
                _ => None,
            })
        }
        .collect();
        for program in programs {
            program.stop.open();
            program.ended.pass().await;
        }
        self.told();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{FakeBuild, Fault, Op, Snapshot};
    use super::*;
    use crate::host::Machine as _;
    use crate::host::machine::render::unit::tests::spec;
    use crate::host::services::probe;
    use crate::model::{HostName, Protocol};

    fn machine() -> FakeMachine {
        FakeMachine::new(|_| FakeBuild::default())
    }

    /// A specification with a port of this machine's own.
    async fn spec_for(machine: &FakeMachine) -> UnitSpec {
        for number in Port::FIRST..=Port::LAST {
            let port = Port::try_from(number).unwrap();
            if machine.listener(port).await.unwrap() == Listener::None {
                return UnitSpec { port, ..spec() };
            }
        }
        panic!("no free port");
    }

    async fn install(machine: &FakeMachine, spec: &UnitSpec) {
        machine.ensure_env_file(spec).await.unwrap();
        machine.ensure_unit(spec).await.unwrap();
    }

    async fn health(port: Port) -> Result<(), String> {
        let host: HostName = "a.example.com".parse().unwrap();
        probe::http(port, Protocol::Http1, "/health", &host).await.map_err(|failure| failure.to_string())
    }

    #[tokio::test]
    async fn a_started_unit_listens_for_real_and_leaves_nothing_when_removed() {
        let machine = machine();
        let spec = spec_for(&machine).await;
        install(&machine, &spec).await;
        machine.start_unit(&spec.unit()).await.unwrap();
        machine.start_unit(&spec.unit()).await.unwrap();
        assert_eq!(health(spec.port).await, Ok(()));
        let uid = machine.unit_uid(&spec.unit()).await.unwrap().unwrap();
        assert_eq!(machine.listener(spec.port).await.unwrap(), Listener::Owned { uid });
        let after_a_restart_of_the_daemon = machine.clone();
        assert_eq!(after_a_restart_of_the_daemon.own_units().await.unwrap(), [spec.unit()]);

        machine.stop_unit(&spec.unit()).await.unwrap();
        assert_eq!(health(spec.port).await, Err("refused the connection".to_owned()));
        machine.remove_unit(&spec.unit()).await.unwrap();
        machine.remove_data_dir(&spec.project, &spec.slug, &spec.service).await.unwrap();
        machine.empty_trash(Duration::ZERO).await.unwrap();
        assert_eq!(machine.snapshot(), Snapshot::default());
    }

    #[tokio::test]
    async fn programs_behave_as_they_are_told() {
        let machine = machine();
        let spec = spec_for(&machine).await;
        let unit = spec.unit();
        let start = async |behaviour| {
            machine.stop_unit(&unit).await.unwrap();
            machine.set_behaviour(&spec.store_path, behaviour);
            install(&machine, &spec).await;
            machine.start_unit(&unit).await
        };
        start(Behaviour::Answers(503)).await.unwrap();
        assert_eq!(health(spec.port).await, Err("answered 503".to_owned()));
        start(Behaviour::NeverListens).await.unwrap();
        assert_eq!(machine.listener(spec.port).await.unwrap(), Listener::None);
        start(Behaviour::ExitsAtOnce(3)).await.unwrap();
        let restarting = UnitState::Restarting { result: "exit-code, status 3".to_owned() };
        assert_eq!(machine.unit_state(&unit).await.unwrap(), restarting);
        assert_eq!(machine.journal_tail(&unit, 1).await.unwrap(), ["ends with status 3"]);
        start(Behaviour::CannotStart).await.unwrap_err();
        start(Behaviour::Healthy).await.unwrap();
        machine.crash_unit(&unit, 9).await;
        assert_eq!(health(spec.port).await, Err("refused the connection".to_owned()));
        start(Behaviour::RefusesToStop).await.unwrap();
        machine.stop_unit(&unit).await.unwrap_err();
        machine.reboot().await;
        assert!(machine.own_units().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn two_machines_never_use_one_port() {
        let (one, two) = (machine(), machine());
        let (first, second) = (spec_for(&one).await, spec_for(&two).await);
        assert_ne!(first.port, second.port);
        one.squat(first.port, Some(7));
        assert_eq!(one.listener(first.port).await.unwrap(), Listener::Owned { uid: 7 });
    }

    #[tokio::test]
    async fn a_call_fails_or_hangs_when_its_turn_has_come() {
        let machine = machine();
        let spec = spec_for(&machine).await;
        let _ = machine.fault(Op::EnsureUnit, 2, Fault::Fail);
        machine.ensure_unit(&spec).await.unwrap();
        machine.ensure_unit(&spec).await.unwrap_err();
        machine.ensure_unit(&spec).await.unwrap();
        let hangs = machine.fault(Op::EnsureEnvFile, 1, Fault::HangAfter);
        tokio::select! {
            _ = machine.ensure_env_file(&spec) => panic!("it was to hang"),
            () = hangs.wait() => {}
        }
        assert_eq!(machine.snapshot().env_files, [spec.unit()]);
        assert_eq!(machine.calls(Op::EnsureEnvFile), 1);
    }
}
