//! Where a repository is: which transport, which host, and how to name it without its password.

/// A repository's URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) url: String,
    pub(super) transport: Transport,
    /// Empty for a repository on this machine.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: Option<String>,
    password: Option<String>,
}

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Https,
    Http,
    Ssh,
    Git,
    File,
}

impl Transport {
    /// What git calls it in `GIT_ALLOW_PROTOCOL`.
    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::Git => "git",
            Self::File => "file",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Https => 443,
            Self::Http => 80,
            Self::Ssh => 22,
            Self::Git => 9418,
            Self::File => 0,
        }
    }
}

impl Remote {
    /// Takes a URL apart, or says what is wrong with it.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        if url.chars().any(|c| c.is_control() || c.is_whitespace()) || url.starts_with('-') {
            return Err("the repository's URL holds a space or a control character, or begins with `-`".to_owned());
        }
        let (transport, authority) = match url.split_once("://") {
            Some((scheme, rest)) => {
                let transport = match scheme {
                    "https" => Transport::Https,
                    "http" => Transport::Http,
                    "ssh" | "git+ssh" => Transport::Ssh,
                    "git" => Transport::Git,
                    "file" => Transport::File,
                    _ => return Err(format!("the repository's URL has the unknown scheme `{scheme}`")),
                };
                (transport, rest.split('/').next().unwrap_or_default())
            }
            None if url.starts_with('/') => (Transport::File, ""),
            // The form `user@host:path` of scp.
            None => match url.split_once(':') {
                Some((authority, path)) if !authority.contains('/') && !path.is_empty() => (Transport::Ssh, authority),
                _ => return Err("the repository's URL has no scheme".to_owned()),
            },
        };
        let (user_info, host_port) =
            authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        let (user, password) = match user_info.map(|info| info.split_once(':').unwrap_or((info, ""))) {
            Some((user, password)) => (Some(user), Some(password).filter(|password| !password.is_empty())),
            None => (None, None),
        };
        let (host, port) = split_port(host_port, transport.default_port())
            .ok_or_else(|| "the repository's URL has no valid port".to_owned())?;
        if host.is_empty() && transport != Transport::File {
            return Err("the repository's URL has no host".to_owned());
        }
        Ok(Self {
            url: url.to_owned(),
            transport,
            host: host.to_ascii_lowercase(),
            port,
            user: user.filter(|user| !user.is_empty()).map(str::to_owned),
            password: password.map(str::to_owned),
        })
    }

    /// Scheme, host and port of an http remote, in front of which a credential may be put.
    pub(super) fn is_origin_of(&self, url: &str) -> bool {
        Self::parse(url)
            .is_ok_and(|other| (other.transport, other.port) == (self.transport, self.port) && other.host == self.host)
    }

    /// `text` without the password of the URL.
    pub(super) fn without_password(&self, text: &str) -> String {
        match &self.password {
            Some(password) => text.replace(password.as_str(), "…"),
            None => text.to_owned(),
        }
    }
}

fn split_port(host_port: &str, default: u16) -> Option<(&str, u16)> {
    if let Some(bracketed) = host_port.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, port.parse().ok()?)),
            None => rest.is_empty().then_some((host, default)),
        };
    }
    match host_port.split_once(':') {
        Some((host, port)) => Some((host, port.parse().ok()?)),
        None => Some((host_port, default)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_every_form_are_taken_apart() {
        for (url, transport, user, host, port) in [
            ("https://forge.example.com/a/b.git", Transport::Https, None, "forge.example.com", 443),
            ("http://u:p%40@Forge:3000/a", Transport::Http, Some("u"), "forge", 3000),
            ("ssh://git@forge:2222/a/b.git", Transport::Ssh, Some("git"), "forge", 2222),
            ("git@forge:a/b.git", Transport::Ssh, Some("git"), "forge", 22),
            ("ssh://git@[::1]:22/a", Transport::Ssh, Some("git"), "::1", 22),
            ("git://forge/a", Transport::Git, None, "forge", 9418),
            ("file:///srv/a.git", Transport::File, None, "", 0),
            ("/srv/a.git", Transport::File, None, "", 0),
        ] {
            let remote = Remote::parse(url).unwrap();
            assert_eq!(
                (remote.transport, remote.user.as_deref(), remote.host.as_str(), remote.port),
                (transport, user, host, port),
                "{url}"
            );
        }
    }

    #[test]
    fn what_is_no_url_of_a_repository_is_refused() {
        for url in ["", "-u", "ext::sh -c id", "ext::sh", "fd::7", "https://", "ftp://h/x", "https://h:x/", "a b", "x"]
        {
            // `ext::sh` reads as a path `:sh` on the host `ext`, reached by ssh: never as a helper to run.
            match Remote::parse(url) {
                Ok(remote) => assert_eq!(remote.transport, Transport::Ssh, "{url}"),
                Err(problem) => assert!(problem.contains("URL"), "{url}: {problem}"),
            }
        }
    }

    #[test]
    fn a_credential_stays_with_its_origin() {
        let remote = Remote::parse("https://forge.example.com/a.git").unwrap();
        assert!(remote.is_origin_of("https://forge.example.com/other"));
        for other in ["http://forge.example.com/a.git", "https://forge.example.com:444/a.git", "https://evil.com/"] {
            assert!(!remote.is_origin_of(other), "{other}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let remote = Remote::parse("https://me:hunter2@forge/a").unwrap();
        assert_eq!(remote.without_password("no https://me:hunter2@forge/a"), "no https://me:…@forge/a");
    }
}
