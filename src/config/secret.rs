//! Reads the operator's secret files. Checking a configuration never does; starting the daemon does.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::{ProjectConfig, variable};
use crate::model::ProjectName;

/// The largest secret of kennel's own, in bytes.
const SECRET_MAX: u64 = 16 * 1024;
/// The largest secret of a service, in bytes: what a variable of its kennel.toml may hold.
const SERVICE_SECRET_MAX: u64 = 64 * 1024;

/// A secret file that cannot be used. Never holds anything of its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is a directory, a device or the like.
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// There is nothing in it but white space.
    #[error("`{}` is empty", .0.display())]
    Empty(PathBuf),
    /// It holds more than a secret.
    #[error("`{}` is larger than {} KiB", path.display(), limit / 1024)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// How many bytes it may hold.
        limit: u64,
    },
    /// It is not text.
    #[error("`{}` is not UTF-8", .0.display())]
    NotText(PathBuf),
    /// It holds what no variable can.
    #[error("`{}` {problem}", path.display())]
    NotAVariable {
        /// The file.
        path: PathBuf,
        /// What is wrong, as the rest of a sentence; it names the kind of character and nothing beside it.
        problem: String,
    },
}

/// What a file of a service's secret holds.
#[derive(Debug)]
pub struct ServiceSecret {
    /// All of it.
    pub whole: SecretString,
    /// Without one line break at its end: editors and `echo` leave one, and no key is meant to have it.
    pub value: SecretString,
}

/// A project whose webhook secret cannot be used: the daemon does not start with it.
#[derive(Debug, thiserror::Error)]
#[error("project `{project}` has no usable webhook secret (`webhook_secret_file`)")]
pub struct WebhookSecretError {
    /// The project.
    pub project: ProjectName,
    /// What is wrong with the file.
    pub source: SecretError,
}

/// Reads a secret file, without one line break at its end.
///
/// # Errors
/// When it cannot be read, is not a regular file, is blank, over 16 KiB or not UTF-8.
pub fn read_secret(path: &Path) -> Result<SecretString, SecretError> {
    Ok(SecretString::from(line(&read(path, SECRET_MAX)?)))
}

/// Reads the file of a service's secret.
///
/// # Errors
/// When it cannot be read, is not a regular file, is blank, over 64 KiB, not UTF-8, or holds a control character other
/// than line break and tab (carriage returns included, but for the one in a line break at its end).
pub fn read_service_secret(path: &Path) -> Result<ServiceSecret, SecretError> {
    let text = read(path, SERVICE_SECRET_MAX)?;
    let value = line(&text);
    variable::check_value(value).map_err(|problem| SecretError::NotAVariable { path: path.to_owned(), problem })?;
    Ok(ServiceSecret { value: SecretString::from(value), whole: SecretString::from(text) })
}

/// Without one line break at its end.
fn line(text: &str) -> &str {
    text.strip_suffix("\r\n").or_else(|| text.strip_suffix('\n')).unwrap_or(text)
}

fn read(path: &Path, limit: u64) -> Result<String, SecretError> {
    let unreadable = |source| SecretError::Unreadable { path: path.to_owned(), source };
    // A FIFO would block the open, so look first; the operator's own files are not raced.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(SecretError::NotAFile(path.to_owned()));
    }
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(limit + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > limit {
        return Err(SecretError::TooLarge { path: path.to_owned(), limit });
    }
    let text = String::from_utf8(content).map_err(|_| SecretError::NotText(path.to_owned()))?;
    if text.trim().is_empty() {
        return Err(SecretError::Empty(path.to_owned()));
    }
    Ok(text)
}

/// Reads the secret a project's webhook is signed with.
///
/// # Errors
/// As [`read_secret`], naming the project: the daemon must not start.
pub fn read_webhook_secret(project: &ProjectConfig) -> Result<SecretString, WebhookSecretError> {
    read_secret(&project.webhook_secret_file)
        .map_err(|source| WebhookSecretError { project: project.name.clone(), source })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use secrecy::ExposeSecret as _;

    use super::*;

    fn read(content: &[u8]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, content).unwrap();
        match read_secret(&path) {
            Ok(secret) => Ok(secret.expose_secret().to_owned()),
            Err(err) => Err(err.to_string().replace(&dir.path().display().to_string(), "DIR")),
        }
    }

    #[rstest]
    #[case(b"s3cret", "s3cret")]
    #[case(b"s3cret\n", "s3cret")]
    #[case(b"s3cret\r\n", "s3cret")]
    #[case(b"s3cret\n\n", "s3cret\n")]
    #[case(b" s3 cret ", " s3 cret ")]
    fn one_line_break_at_the_end_is_not_part_of_a_secret(#[case] content: &[u8], #[case] secret: &str) {
        assert_eq!(read(content).unwrap(), secret);
    }

    #[rstest]
    #[case(b"", "`DIR/secret` is empty")]
    #[case(b"\n", "`DIR/secret` is empty")]
    #[case(b" \t\n", "`DIR/secret` is empty")]
    #[case(b"\xff\xfe", "`DIR/secret` is not UTF-8")]
    #[case(&[b'x'; 20_000], "`DIR/secret` is larger than 16 KiB")]
    fn a_file_that_is_no_secret_is_refused(#[case] content: &[u8], #[case] problem: &str) {
        assert_eq!(read(content).unwrap_err(), problem);
    }

    #[rstest]
    #[case(b"hush", "hush")]
    #[case(b"hush\n", "hush")]
    #[case(b"hush\r\n", "hush")]
    #[case(b"-----BEGIN-----\n\tabc\n-----END-----\n", "-----BEGIN-----\n\tabc\n-----END-----")]
    fn a_services_secret_is_kept_whole_and_as_a_value(#[case] content: &[u8], #[case] value: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, content).unwrap();
        let secret = read_service_secret(&path).unwrap();
        assert_eq!(secret.value.expose_secret(), value);
        assert_eq!(secret.whole.expose_secret().as_bytes(), content);
        assert!(!format!("{secret:?}").contains("hush"));
    }

    #[rstest]
    #[case(b"hu\0sh".to_vec(), "holds a NUL (U+0000)")]
    #[case(b"hu\r\nsh\r\n".to_vec(), "holds a carriage return (U+000D)")]
    #[case(b"hush\x1b[0m".to_vec(), "holds the control character U+001B")]
    #[case(vec![b'h'; 64 * 1024 + 1], "is larger than 64 KiB")]
    #[case(b"hush\xff".to_vec(), "is not UTF-8")]
    #[case(b"\n".to_vec(), "is empty")]
    fn a_services_secret_that_could_not_arrive_is_refused_and_never_shown(
        #[case] content: Vec<u8>,
        #[case] what: &str,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, content).unwrap();
        let err = read_service_secret(&path).unwrap_err();
        assert_eq!(err.to_string(), format!("`{}` {what}", path.display()));
        // The directory's name is of chance, and may hold any two letters.
        let shown = format!("{err:?}").replace(&dir.path().display().to_string(), "");
        assert!(!shown.contains("hu"), "{shown}");
    }

    #[test]
    fn what_is_not_a_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_secret(dir.path()), Err(SecretError::NotAFile(_))));
        assert!(matches!(read_secret(Path::new("/dev/zero")), Err(SecretError::NotAFile(_))));
        assert!(matches!(read_secret(&dir.path().join("none")), Err(SecretError::Unreadable { .. })));
    }
}
