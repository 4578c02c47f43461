//! What the kernel tells of processes.

/// The effective user of a process, or `None` when there is no such process.
pub(super) fn uid_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_the_user_it_runs_as() {
        assert_eq!(uid_of(std::process::id()), Some(nix::unistd::geteuid().as_raw()));
        assert_eq!(uid_of(u32::MAX), None);
    }
}
