//! Reads the operator's secret files. Checking a configuration never does; starting the daemon does.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::ProjectConfig;
use crate::model::ProjectName;

/// The largest secret read, in bytes.
const SECRET_MAX: u64 = 16 * 1024;

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
    #[error("`{}` is larger than 16 KiB", .0.display())]
    TooLarge(PathBuf),
    /// It is not text.
    #[error("`{}` is not UTF-8", .0.display())]
    NotText(PathBuf),
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
    let unreadable = |source| SecretError::Unreadable { path: path.to_owned(), source };
    // A FIFO would block the open, so look first; the operator's own files are not raced.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(SecretError::NotAFile(path.to_owned()));
    }
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(SECRET_MAX + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > SECRET_MAX {
        return Err(SecretError::TooLarge(path.to_owned()));
    }
    let text = String::from_utf8(content).map_err(|_| SecretError::NotText(path.to_owned()))?;
    let line = text.strip_suffix("\r\n").or_else(|| text.strip_suffix('\n')).unwrap_or(&text);
    if line.trim().is_empty() {
        return Err(SecretError::Empty(path.to_owned()));
    }
    Ok(SecretString::from(line))
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

    #[test]
    fn what_is_not_a_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_secret(dir.path()), Err(SecretError::NotAFile(_))));
        assert!(matches!(read_secret(Path::new("/dev/zero")), Err(SecretError::NotAFile(_))));
        assert!(matches!(read_secret(&dir.path().join("none")), Err(SecretError::Unreadable { .. })));
    }
}
