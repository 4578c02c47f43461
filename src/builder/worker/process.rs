//! Runs one child process: in a process group of its own, under a time limit, its output read to the end.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::log::LINE_MAX;

/// How long a process may take to end by itself. Nix ignores TERM while it evaluates.
const GRACE: Duration = Duration::from_millis(500);
/// How much of standard output is kept.
const STDOUT_MAX: usize = 64 << 10;

/// How a process ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// By itself; with the beginning of its standard output.
    Exited(ExitStatus, Vec<u8>),
    /// By the time limit.
    TimedOut,
    /// By whoever read what it said.
    Stopped,
}

/// Why what a process says is not read to the end.
enum Broken {
    Failed(io::Error),
    Stopped,
}

impl From<io::Error> for Broken {
    fn from(err: io::Error) -> Self {
        Self::Failed(err)
    }
}

/// Runs a command, handing each line of its standard error to `on_line`, which may have enough of it.
///
/// # Errors
/// When it cannot be started, or `on_line` fails; it does not run any more then.
pub(super) async fn run(
    mut command: Command,
    limit: Duration,
    on_line: impl FnMut(&[u8]) -> io::Result<ControlFlow<()>>,
) -> anyhow::Result<Ended> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{program}`"))?;
    let stdout = child.stdout.take().expect("standard output was piped");
    let stderr = BufReader::new(child.stderr.take().expect("standard error was piped"));
    let to_the_end = async {
        let exit = async { Ok(child.wait().await?) };
        tokio::try_join!(keep_beginning(stdout), each_line(stderr, on_line), exit)
    };
    match within(limit, to_the_end).await {
        Some(Ok((stdout, (), status))) => Ok(Ended::Exited(status, stdout)),
        Some(Err(Broken::Stopped)) => {
            end(&mut child).await.with_context(|| format!("cannot end `{program}`"))?;
            Ok(Ended::Stopped)
        }
        Some(Err(Broken::Failed(err))) => {
            end(&mut child).await.with_context(|| format!("cannot end `{program}`"))?;
            Err(err).with_context(|| format!("cannot keep what `{program}` says"))
        }
        None => {
            end(&mut child).await.with_context(|| format!("cannot end `{program}`"))?;
            Ok(Ended::TimedOut)
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}

/// Ends the whole process group: TERM, and KILL for what is still there.
async fn end(child: &mut Child) -> io::Result<()> {
    // No id: it has been waited for, and its number may be another's by now.
    let Some(id) = child.id() else { return Ok(()) };
    let group = Pid::from_raw(i32::try_from(id).map_err(io::Error::other)?);
    let signal = |signal| match killpg(group, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(io::Error::from(errno)),
    };
    signal(Signal::SIGTERM)?;
    // Its end is looked at without reaping it, so that the group's number stays taken until after the KILL.
    tokio::time::sleep(GRACE).await;
    signal(Signal::SIGKILL)?;
    child.wait().await?;
    Ok(())
}

async fn keep_beginning(mut from: impl tokio::io::AsyncRead + Unpin) -> Result<Vec<u8>, Broken> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 8192];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(kept);
        }
        let room = STDOUT_MAX - kept.len();
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
}

/// Lines without their end, each at most [`LINE_MAX`] long.
async fn each_line(
    mut from: impl AsyncBufRead + Unpin,
    mut on_line: impl FnMut(&[u8]) -> io::Result<ControlFlow<()>>,
) -> Result<(), Broken> {
    let mut line = Vec::new();
    loop {
        let chunk = from.fill_buf().await?;
        if chunk.is_empty() {
            if !line.is_empty() {
                // There is no more to come.
                let _ = on_line(&line)?;
            }
            return Ok(());
        }
        let end = chunk.iter().position(|&byte| byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        line.extend_from_slice(&part[..part.len().min(LINE_MAX - line.len())]);
        let used = part.len() + usize::from(end.is_some());
        from.consume(used);
        if end.is_some() {
            if on_line(&line)?.is_break() {
                return Err(Broken::Stopped);
            }
            line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn both_outputs_are_read_to_the_end_and_bounded() {
        let mut lines = 0;
        let script = "i=0; while [ $i -lt 20000 ]; do echo 0123456789; echo 0123456789 >&2; i=$((i+1)); done; exit 3";
        let ended = run(sh(script), Duration::from_secs(60), |line| {
            assert_eq!(line, b"0123456789");
            lines += 1;
            Ok(ControlFlow::Continue(()))
        });
        let Ended::Exited(status, stdout) = ended.await.unwrap() else { panic!("it timed out") };
        assert_eq!((status.code(), stdout.len(), lines), (Some(3), STDOUT_MAX, 20000));
    }

    #[tokio::test]
    async fn a_line_is_bounded() {
        let mut lengths = Vec::new();
        let input = [vec![b'x'; 3 * LINE_MAX], b"\nshort\n\nno end".to_vec()].concat();
        let read = each_line(&input[..], |line| {
            lengths.push(line.len());
            Ok(ControlFlow::Continue(()))
        });
        assert!(read.await.is_ok());
        assert_eq!(lengths, [LINE_MAX, 5, 0, 6]);
    }

    #[tokio::test]
    async fn the_time_limit_ends_the_whole_group_though_it_ignores_term() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let script = format!("trap '' TERM; sleep 1000 & echo $! $$ > '{}'; wait; wait", pids.display());
        let started = Instant::now();
        let ended = run(sh(&script), Duration::from_millis(300), |_| Ok(ControlFlow::Continue(()))).await.unwrap();
        assert!(matches!(ended, Ended::TimedOut), "{ended:?}");
        assert!(started.elapsed() < Duration::from_secs(5));
        for pid in std::fs::read_to_string(&pids).unwrap().split_whitespace() {
            // A killed grandchild dies when it is next scheduled, and is a zombie until the machine's init reaps it.
            let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            while !(stat().is_empty() || stat().contains(") Z ")) {
                assert!(started.elapsed() < Duration::from_secs(5), "{pid} still runs: {}", stat());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    #[tokio::test]
    async fn whoever_has_heard_enough_ends_the_process() {
        let mut lines = 0;
        let ended = run(sh("while :; do echo x >&2; done"), Duration::from_secs(60), |_| {
            lines += 1;
            Ok(if lines < 1000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        });
        assert!(matches!(ended.await.unwrap(), Ended::Stopped));
        assert_eq!(lines, 1000);
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_written_ends_the_process() {
        let started = Instant::now();
        let ended = run(sh("echo x >&2; sleep 1000"), Duration::from_secs(60), |_| Err(io::Error::other("disk full")));
        assert!(format!("{:#}", ended.await.unwrap_err()).contains("disk full"));
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
