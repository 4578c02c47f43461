//! What a test's daemon and projects are to be like, and the file that says so to kennel.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::delivery::Style;

/// The domain all hostnames of the tests lie under.
pub(crate) const BASE_DOMAIN: &str = "lab.test";

/// The daemon's file, and the forge's repositories.
#[derive(Debug, Clone)]
pub(crate) struct LabConfig {
    /// More lines before the first section.
    pub(crate) head: String,
    pub(crate) builder: String,
    /// More lines of `[router]`.
    pub(crate) router: String,
    /// More sections.
    pub(crate) sections: String,
    pub(crate) projects: Vec<ProjectSpec>,
}

/// One project and its repository.
#[derive(Debug, Clone)]
pub(crate) struct ProjectSpec {
    pub(crate) name: String,
    pub(crate) style: Style,
    /// Where kennel fetches from, unless it is the forge.
    pub(crate) url: Option<String>,
    /// More lines of its table.
    pub(crate) lines: String,
}

impl LabConfig {
    /// One project, called `hello`, of a Forgejo.
    pub(crate) fn hello() -> Self {
        Self::of([ProjectSpec::new("hello")])
    }

    pub(crate) fn of(projects: impl IntoIterator<Item = ProjectSpec>) -> Self {
        Self {
            head: String::new(),
            builder: String::new(),
            router: String::new(),
            sections: String::new(),
            projects: projects.into_iter().collect(),
        }
    }

    /// One more line before the first section.
    pub(crate) fn head(mut self, line: &str) -> Self {
        let _ = writeln!(self.head, "{line}");
        self
    }

    /// One more line of `[builder]`.
    pub(crate) fn builder(mut self, line: &str) -> Self {
        let _ = writeln!(self.builder, "{line}");
        self
    }

    /// One more line of `[router]`.
    pub(crate) fn router(mut self, line: &str) -> Self {
        let _ = writeln!(self.router, "{line}");
        self
    }

    /// One more section, with its head.
    pub(crate) fn section(mut self, text: &str) -> Self {
        let _ = writeln!(self.sections, "{text}");
        self
    }
}

impl ProjectSpec {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), style: Style::Forgejo, url: None, lines: String::new() }
    }

    pub(crate) fn style(mut self, style: Style) -> Self {
        self.style = style;
        self
    }

    pub(crate) fn url(mut self, url: &str) -> Self {
        self.url = Some(url.to_owned());
        self
    }

    /// One more line of its table.
    pub(crate) fn line(mut self, line: &str) -> Self {
        let _ = writeln!(self.lines, "{line}");
        self
    }

    pub(crate) fn secret_file(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}-webhook", self.name))
    }
}

/// The daemon's file.
pub(crate) fn render(config: &LabConfig, dir: &Path, forge_url: impl Fn(&str) -> String) -> String {
    let mut text = format!(
        "base_domain = \"{BASE_DOMAIN}\"\n{}\
         [api]\nlisten = \"127.0.0.1:3000\"\n\
         [router]\nhttp = \"127.0.0.1:8080\"\n{}\n\
         [builder]\n{}\n{}\n",
        config.head, config.router, config.builder, config.sections
    );
    for project in &config.projects {
        let _ = write!(
            text,
            "[projects.{}]\nrepo_url = \"{}\"\nrepo_type = \"{}\"\nwebhook_secret_file = \"{}\"\n{}\n",
            project.name,
            project.url.clone().unwrap_or_else(|| forge_url(&project.name)),
            project.style.repo_type(),
            project.secret_file(dir).display(),
            project.lines,
        );
    }
    text
}
