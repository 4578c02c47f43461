//! What the kernel knows of a process: CPU time and memory; and which core it may run on.

use std::time::Duration;

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Lets this process, and those it starts, have as many descriptors as the system allows.
pub(crate) fn raise_descriptor_limit() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(())
}

/// Keeps this thread, and those it starts, on one core.
pub(crate) fn pin_self(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot keep to one core: are there two?")
}

/// The CPU time of a process so far, with all threads it has had, in seconds (`clock_getcpuclockid(3)`).
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.try_into()?)).context("the proxy is gone")?;
    Ok(Duration::from(clock_gettime(clock)?).as_secs_f64())
}

/// The memory of a process that is its own and in use, in KiB.
pub(crate) fn memory_kib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon in status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
