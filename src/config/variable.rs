//! What may be an environment variable of a service.

/// The longest name.
const NAME_MAX: usize = 128;

/// What kennel gives every service itself (design, section 5), with what begins with `KENNEL_`.
const OURS: [&str; 2] = ["PORT", "HOST"];

/// What kennel gives a service that has a preview database.
pub(super) const PREVIEW: [&str; 2] = ["DATABASE_URL", "VALKEY_URL"];

/// What glibc's loader acts on before the program runs, with what begins with `LD_` (`ld.so(8)`).
const LOADER: [&str; 2] = ["GLIBC_TUNABLES", "GCONV_PATH"];

/// What systemd tells a service, with what begins with `SYSTEMD_` or `MONITOR_` (`systemd.exec(5)`).
const SYSTEMD: [&str; 15] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "MAINPID",
    "MANAGERPID",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "CREDENTIALS_DIRECTORY",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "CACHE_DIRECTORY",
    "LOGS_DIRECTORY",
];

/// Checks a variable's name: `[A-Za-z_][A-Za-z0-9_]*`, at most 128, and nobody else's.
///
/// # Errors
/// What is wrong with it, as the rest of a sentence.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err("is not a variable's name: 1 to 128 characters");
    }
    if name.starts_with(|c: char| c.is_ascii_digit()) || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err("is not a variable's name: letters, digits and `_`, not beginning with a digit");
    }
    if OURS.contains(&name) || name.starts_with("KENNEL_") {
        return Err("is reserved: kennel sets it");
    }
    if LOADER.contains(&name) || name.starts_with("LD_") {
        return Err("is reserved: it steers the dynamic loader; wrap the program in the flake instead");
    }
    if SYSTEMD.contains(&name) || name.starts_with("SYSTEMD_") || name.starts_with("MONITOR_") {
        return Err("is reserved: systemd sets it");
    }
    Ok(())
}

/// Checks that a value reaches the service byte for byte: systemd drops a variable that holds a control character
/// other than line break and tab, or a Unicode noncharacter, without a word.
///
/// # Errors
/// What is wrong with it, naming the character and never the value.
pub(super) fn check_value(value: &str) -> Result<(), String> {
    let noncharacter = |c: char| matches!(c as u32, 0xFDD0..=0xFDEF) || (c as u32) & 0xFFFE == 0xFFFE;
    match value.chars().find(|&c| (c.is_control() && c != '\n' && c != '\t') || noncharacter(c)) {
        None => Ok(()),
        Some('\0') => Err("holds a NUL (U+0000)".to_owned()),
        Some('\r') => Err("holds a carriage return (U+000D)".to_owned()),
        Some(c) if c.is_control() => Err(format!("holds the control character U+{:04X}", c as u32)),
        Some(c) => Err(format!("holds the noncharacter U+{:04X}", c as u32)),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("LOG_LEVEL", true)]
    #[case("_x9", true)]
    #[case("http_proxy", true)]
    #[case("DATABASE_URL", true)]
    #[case("PORTS", true)]
    #[case("port", true)]
    #[case("", false)]
    #[case("9LIVES", false)]
    #[case("A-B", false)]
    #[case("A B", false)]
    #[case("A=B", false)]
    #[case("Ä", false)]
    #[case("A\n", false)]
    #[case("PORT", false)]
    #[case("HOST", false)]
    #[case("KENNEL_URL", false)]
    #[case("KENNEL_", false)]
    #[case("LD_PRELOAD", false)]
    #[case("GLIBC_TUNABLES", false)]
    #[case("NOTIFY_SOCKET", false)]
    #[case("SYSTEMD_LOG_LEVEL", false)]
    fn only_names_that_are_free_pass(#[case] name: &str, #[case] good: bool) {
        assert_eq!(check_name(name).is_ok(), good, "{name:?}: {:?}", check_name(name));
    }

    #[rstest]
    #[case("")]
    #[case("a b\t\"'\\$`%")]
    #[case("-----BEGIN KEY-----\nabc\n-----END KEY-----\n")]
    #[case("grüße 🐶")]
    fn a_value_of_text_passes(#[case] value: &str) {
        assert_eq!(check_value(value), Ok(()));
    }

    #[rstest]
    #[case("a\0b", "NUL")]
    #[case("a\r\nb", "carriage return")]
    #[case("\u{1b}[0m", "U+001B")]
    #[case("\u{7f}", "U+007F")]
    #[case("\u{85}", "U+0085")]
    #[case("\u{fffe}", "noncharacter U+FFFE")]
    #[case("\u{fdd0}", "noncharacter U+FDD0")]
    fn a_value_systemd_would_drop_is_refused_by_name(#[case] value: &str, #[case] named: &str) {
        let problem = check_value(value).unwrap_err();
        assert!(problem.contains(named), "{problem}");
    }
}
