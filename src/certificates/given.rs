//! Certificates that something else keeps: read from the files that `[[tls.certificates]]` names, again and again.
//!
//! **Invariant:** a pair of files that cannot be used leaves what was read of it before.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::CertificateFiles;
use crate::router::{Certificate, CertificateError};

/// The largest file, in bytes.
const SIZE_MAX: u64 = 1024 * 1024;

/// A pair of files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum GivenError {
    /// One of them cannot be read.
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// They are not a certificate and its key.
    #[error("cannot use `{}` with the key `{}`", certificate.display(), key.display())]
    Unusable {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        source: CertificateError,
    },
}

/// What one pair of files held when it was last read.
#[derive(Debug, Default)]
struct Pair {
    /// The text of both.
    text: Option<(Vec<u8>, Vec<u8>)>,
    certificate: Option<Arc<Certificate>>,
    /// What was last said of it.
    problem: Option<String>,
}

/// What all of them held.
#[derive(Debug, Default)]
pub(super) struct Given {
    pairs: Vec<(CertificateFiles, Pair)>,
}

/// What is new about a pair of files.
#[derive(Debug)]
pub(super) enum News {
    /// There is another certificate in them.
    Certificate(Arc<Certificate>),
    /// They cannot be used; what was read before is kept.
    Problem(GivenError),
}

impl Given {
    /// Reads all of these files. Blocks. Gives what is new, in their order: a problem that stays is told once.
    pub(super) fn refresh(&mut self, files: &[CertificateFiles]) -> Vec<(CertificateFiles, News)> {
        let mut before: HashMap<_, _> =
            std::mem::take(&mut self.pairs).into_iter().map(|(files, pair)| (key_of(&files), pair)).collect();
        let mut news = Vec::new();
        for files in files {
            let mut pair = before.remove(&key_of(files)).unwrap_or_default();
            match pair.read(files) {
                Ok(None) => pair.problem = None,
                Ok(Some(certificate)) => {
                    pair.problem = None;
                    news.push((files.clone(), News::Certificate(certificate)));
                }
                Err(err) => {
                    let said = crate::telemetry::chain(&err);
                    if pair.problem.as_ref() != Some(&said) {
                        pair.problem = Some(said);
                        news.push((files.clone(), News::Problem(err)));
                    }
                }
            }
            self.pairs.push((files.clone(), pair));
        }
        news
    }

    /// The certificates there are.
    pub(super) fn certificates(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        self.pairs.iter().filter_map(|(_, pair)| pair.certificate.as_ref())
    }
}

fn key_of(files: &CertificateFiles) -> (PathBuf, PathBuf) {
    (files.certificate_file.clone(), files.key_file.clone())
}

impl Pair {
    /// The certificate, if it is another one than before.
    fn read(&mut self, files: &CertificateFiles) -> Result<Option<Arc<Certificate>>, GivenError> {
        let text = (read(&files.certificate_file)?, read(&files.key_file)?);
        if self.text.as_ref() == Some(&text) && self.certificate.is_some() {
            return Ok(None);
        }
        let certificate = Certificate::read(&text.0, &text.1).map_err(|source| GivenError::Unusable {
            certificate: files.certificate_file.clone(),
            key: files.key_file.clone(),
            source,
        })?;
        let certificate = Arc::new(certificate);
        (self.text, self.certificate) = (Some(text), Some(Arc::clone(&certificate)));
        Ok(Some(certificate))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, GivenError> {
    let unreadable = |source| GivenError::Unreadable { path: path.to_owned(), source };
    let mut text = Vec::new();
    File::open(path).and_then(|file| file.take(SIZE_MAX).read_to_end(&mut text)).map_err(unreadable)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::router::testing::{Made, certificate};

    fn put(files: &CertificateFiles, made: &Made) {
        fs::write(&files.certificate_file, &made.chain).unwrap();
        fs::write(&files.key_file, &made.key).unwrap();
    }

    fn names(given: &Given) -> Vec<String> {
        given
            .certificates()
            .flat_map(|certificate| certificate.names().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn files_that_change_are_read_again_and_faulty_ones_leave_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let files = CertificateFiles {
            certificate_file: dir.path().join("fullchain.pem"),
            key_file: dir.path().join("key.pem"),
        };
        let all = std::slice::from_ref(&files);
        let mut given = Given::default();

        let said = |news: Vec<(CertificateFiles, News)>| match news.into_iter().next() {
            None => "nothing".to_owned(),
            Some((_, News::Certificate(certificate))) => format!("{:?}", certificate.names().collect::<Vec<_>>()),
            Some((_, News::Problem(err))) => crate::telemetry::chain(&err),
        };
        let missing = said(given.refresh(all));
        assert!(missing.contains("fullchain.pem") && missing.contains("No such file"), "{missing}");
        assert_eq!(said(given.refresh(all)), "nothing", "it is told once");

        put(&files, &certificate(&["a.example"]));
        assert_eq!(said(given.refresh(all)), "[\"a.example\"]");
        assert_eq!(said(given.refresh(all)), "nothing");

        // As while somebody replaces them one by one.
        let renewed = certificate(&["b.example"]);
        fs::write(&files.certificate_file, &renewed.chain).unwrap();
        let torn = said(given.refresh(all));
        assert!(torn.contains("key.pem") && torn.contains("cannot be used with this certificate"), "{torn}");
        assert_eq!(names(&given), ["a.example"]);
        put(&files, &renewed);
        assert_eq!(said(given.refresh(all)), "[\"b.example\"]");

        given.refresh(&[]);
        assert_eq!(names(&given), Vec::<String>::new());
    }
}
