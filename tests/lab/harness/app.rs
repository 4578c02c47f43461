//! Test repositories: services and sites that a flake without inputs builds, without a network.
//!
//! The sandbox of a build has a shell and nothing beside it, so directories come from `builtin:buildenv`, and what
//! a build says and how long it takes from a derivation that `/bin/sh` runs before.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::gate::Gate;

/// What lies at a path of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    File(Vec<u8>),
    Program(Vec<u8>),
    Link(String),
    /// A submodule, at this commit.
    Submodule(String),
}

/// The files of a repository, by path.
pub(crate) type Files = BTreeMap<String, Entry>;

/// A repository with services and sites.
#[derive(Debug, Clone, Default)]
pub(crate) struct App {
    services: Vec<Service>,
    sites: Vec<Site>,
    extra: Files,
    manifest_end: String,
}

/// One service of a repository.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    name: String,
    version: String,
    mode: String,
    program: &'static str,
    build: Build,
    settings: Vec<String>,
    env: Vec<(String, String)>,
}

/// One static site of a repository.
#[derive(Debug, Clone)]
struct Site {
    name: String,
    page: String,
    build: Build,
    settings: Vec<String>,
}

/// What is done in Nix's sandbox before a package counts as built.
#[derive(Debug, Clone, Default)]
struct Build {
    script: String,
    gate: Option<Gate>,
}

impl App {
    /// A repository with one service, called `api`.
    pub(crate) fn api(version: &str) -> Self {
        Self::default().with(Service::new("api", version))
    }

    pub(crate) fn with(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    pub(crate) fn site(mut self, name: &str, page: &str) -> Self {
        let (name, page) = (name.to_owned(), page.to_owned());
        self.sites.push(Site { name, page, build: Build::default(), settings: Vec::new() });
        self
    }

    /// One more line in the table of the last site in kennel.toml.
    pub(crate) fn site_setting(mut self, line: &str) -> Self {
        self.sites.last_mut().expect("a site comes before its settings").settings.push(line.to_owned());
        self
    }

    /// The build of the last site waits until the gate is opened, if there is one.
    pub(crate) fn site_gate(mut self, gate: Option<&Gate>) -> Self {
        self.sites.last_mut().expect("a site comes before its gate").build.gate = gate.cloned();
        self
    }

    /// More sections of kennel.toml.
    pub(crate) fn manifest_end(mut self, text: &str) -> Self {
        text.clone_into(&mut self.manifest_end);
        self
    }

    /// One more file, in the place of what would be there otherwise.
    pub(crate) fn file(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.extra.insert(path.to_owned(), Entry::File(content.into()));
        self
    }

    pub(crate) fn program(mut self, path: &str, content: &str) -> Self {
        self.extra.insert(path.to_owned(), Entry::Program(content.into()));
        self
    }

    pub(crate) fn link(mut self, path: &str, to: &str) -> Self {
        self.extra.insert(path.to_owned(), Entry::Link(to.to_owned()));
        self
    }

    /// The names of its services.
    pub(crate) fn service_names(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|service| service.name.as_str())
    }

    /// The names of its services and sites.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.service_names().chain(self.sites.iter().map(|site| site.name.as_str()))
    }

    /// Everything that is in the repository.
    pub(crate) fn files(&self) -> Files {
        let mut files = Files::new();
        for service in &self.services {
            let program = service.program.replace("@VERSION@", &service.version).replace("@MODE@", &service.mode);
            files.insert(format!("{0}/bin/{0}", service.name), Entry::Program(program.into()));
        }
        for site in &self.sites {
            files.insert(format!("{}/index.html", site.name), Entry::File(site.page.clone().into()));
        }
        files.insert("flake.nix".to_owned(), Entry::File(self.flake().into()));
        files.insert("kennel.toml".to_owned(), Entry::File(self.manifest().into()));
        files.extend(self.extra.clone());
        files
    }

    fn manifest(&self) -> String {
        let mut text = String::new();
        for service in &self.services {
            let _ = writeln!(text, "[services.{}]\n{}", service.name, service.settings.join("\n"));
            if !service.env.is_empty() {
                let _ = writeln!(text, "[services.{}.env]", service.name);
            }
            for (name, value) in &service.env {
                let _ = writeln!(text, "{name} = {}", toml::Value::String(value.clone()));
            }
        }
        for site in &self.sites {
            let _ = writeln!(text, "[static_sites.{}]\n{}", site.name, site.settings.join("\n"));
        }
        text + &self.manifest_end
    }

    fn flake(&self) -> String {
        let packages = self.services.iter().map(|service| (&service.name, &service.build));
        let packages = packages.chain(self.sites.iter().map(|site| (&site.name, &site.build)));
        let mut text = include_str!("flake.nix").replace("@SYSTEM@", &system());
        let packages = packages.fold(String::new(), |mut list, (name, build)| {
            let _ = writeln!(list, "      {name} = package \"{name}\" ./{name} (check \"{name}\" {});", build.nix());
            list
        });
        text = text.replace("# @PACKAGES@\n", packages.trim_start());
        text
    }
}

impl Service {
    /// A healthy service whose drain is short.
    pub(crate) fn new(name: &str, version: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            mode: "ok".to_owned(),
            program: include_str!("service.py"),
            build: Build::default(),
            settings: vec!["drain_secs = 1".to_owned()],
            env: Vec::new(),
        }
    }

    /// One that starts at once and knows no more than its version, and the mode `exit`.
    pub(crate) fn small(name: &str, version: &str) -> Self {
        Self { program: include_str!("service.pl"), ..Self::new(name, version) }.settings(&["drain_secs = 0"])
    }

    /// How it behaves; the words are in `service.py`.
    pub(crate) fn mode(mut self, mode: &str) -> Self {
        mode.clone_into(&mut self.mode);
        self
    }

    /// Its lines in kennel.toml, instead of `drain_secs = 1`.
    pub(crate) fn settings(mut self, lines: &[&str]) -> Self {
        self.settings = lines.iter().map(|&line| line.to_owned()).collect();
        self
    }

    /// It has preview databases.
    pub(crate) fn with_databases(mut self) -> Self {
        self.settings.push("preview_database = true".to_owned());
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What its build does, in bash without any other program.
    pub(crate) fn builds_by(mut self, script: &str) -> Self {
        script.clone_into(&mut self.build.script);
        self
    }

    /// Its build waits until the gate is opened.
    pub(crate) fn behind(mut self, gate: &Gate) -> Self {
        self.build.gate = Some(gate.clone());
        self
    }
}

impl Build {
    /// The arguments of the flake's `check`: a script, and what it waits for.
    fn nix(&self) -> String {
        let script = self.script.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${");
        let gate = match &self.gate {
            Some(gate) => format!("(gate \"{}\" \"{}\")", gate.name(), gate.port()),
            None => "null".to_owned(),
        };
        format!("\"{script}\" {gate}")
    }
}

/// Nix's name for this machine.
pub(crate) fn system() -> String {
    format!("{}-linux", std::env::consts::ARCH)
}
