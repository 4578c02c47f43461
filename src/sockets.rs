//! Listening sockets that outlive the process: the service manager holds them too, so that nobody is refused while
//! one kennel ends and the next one begins (`sd_listen_fds(3)`, `systemd.socket(5)`).
//!
//! They are known by their own addresses; what was not passed is bound here, so that kennel runs without them as well.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use nix::sys::socket::{AddressFamily, SockaddrLike as _, SockaddrStorage, getsockname};

/// Sockets that were passed and that nobody has asked for yet.
#[derive(Debug, Default)]
pub struct Sockets {
    tcp: Vec<TcpListener>,
    unix: Vec<UnixListener>,
    /// What they are, where kennel can do nothing with them.
    useless: Vec<String>,
}

impl Sockets {
    /// Takes those that systemd passed to this process. To be called before there are threads: it changes the
    /// environment, so that no child takes them for its own.
    ///
    /// # Errors
    /// When a descriptor that was announced is not there.
    pub fn passed() -> io::Result<Self> {
        let mut passed = ListenFd::from_env();
        let mut sockets = Self::default();
        for number in 0..passed.len() {
            if let Ok(Some(listener)) = passed.take_unix_listener(number) {
                sockets.unix.push(listener);
            } else if let Ok(Some(listener)) = passed.take_tcp_listener(number) {
                sockets.tcp.push(listener);
            } else if let Some(descriptor) = passed.take_raw_fd(number)? {
                let address: Result<SockaddrStorage, _> = getsockname(descriptor);
                let what = address.ok().filter(|address| address.len() > 0).map(|address| address.to_string());
                sockets.useless.push(what.unwrap_or_else(|| format!("descriptor {descriptor}")));
            }
        }
        Ok(sockets)
    }

    /// Takes sockets that another kennel passed.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn of(passed: Vec<OwnedFd>) -> io::Result<Self> {
        let mut sockets = Self::default();
        for socket in passed {
            let address: SockaddrStorage = getsockname(socket.as_raw_fd())?;
            match address.family() {
                Some(AddressFamily::Unix) => sockets.unix.push(socket.into()),
                Some(AddressFamily::Inet | AddressFamily::Inet6) => sockets.tcp.push(socket.into()),
                _ => sockets.useless.push(address.to_string()),
            }
        }
        Ok(sockets)
    }

    /// Those that listen on `address`: all that were passed, or one bound now. There is at least one.
    ///
    /// # Errors
    /// When `address` cannot be bound.
    pub fn tcp(&mut self, address: SocketAddr) -> io::Result<Vec<tokio::net::TcpListener>> {
        let passed = self.tcp.extract_if(.., |listener| listener.local_addr().is_ok_and(|own| own == address));
        let mut listeners: Vec<_> = passed.collect();
        if listeners.is_empty() {
            listeners.push(TcpListener::bind(address)?);
        }
        listeners
            .into_iter()
            .map(|listener| {
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener)
            })
            .collect()
    }

    /// The one that was passed for the socket file `path`, if that file is still there.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn unix(&mut self, path: &Path) -> io::Result<Option<tokio::net::UnixListener>> {
        let mut passed =
            self.unix.extract_if(.., |listener| listener.local_addr().is_ok_and(|own| own.as_pathname() == Some(path)));
        let Some(listener) = passed.by_ref().next() else { return Ok(None) };
        if !path.exists() {
            return Ok(None);
        }
        listener.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(listener).map(Some)
    }

    /// The addresses of those that nobody has asked for: whoever connects there waits for ever.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let tcp = self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).map(|own| own.to_string());
        let unix = self.unix.iter().filter_map(|listener| {
            let own = listener.local_addr().ok()?;
            Some(own.as_pathname()?.display().to_string())
        });
        tcp.chain(unix).chain(self.useless.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn sockets_are_known_by_their_addresses_and_the_rest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (own, other) = (dir.path().join("kennel.sock"), dir.path().join("other.sock"));
        let ((front, address), (stray, stray_address)) = (bound(), bound());
        let second = front.try_clone().unwrap();
        let unix = [&own, &other].map(|path| UnixListener::bind(path).unwrap()).into();
        let mut sockets = Sockets { tcp: vec![stray, front, second], unix, useless: vec!["udp".to_owned()] };

        let front = sockets.tcp(address).unwrap();
        assert_eq!(front.iter().map(|one| one.local_addr().unwrap()).collect::<Vec<_>>(), [address; 2]);
        assert!(sockets.unix(&own).unwrap().is_some());
        assert_eq!(sockets.left(), [stray_address.to_string(), other.display().to_string(), "udp".to_owned()]);
    }

    #[tokio::test]
    async fn what_was_not_passed_is_bound() {
        let mut sockets = Sockets::default();
        assert_eq!(sockets.tcp("127.0.0.1:0".parse().unwrap()).unwrap().len(), 1);
        assert!(sockets.unix(Path::new("/nowhere/kennel.sock")).unwrap().is_none());
        let (_held, address) = bound();
        assert_eq!(sockets.tcp(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    /// The file of a socket that systemd still holds may have been removed: nobody could come in by it.
    #[tokio::test]
    async fn a_unix_socket_without_its_file_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kennel.sock");
        let mut sockets = Sockets { unix: vec![UnixListener::bind(&path).unwrap()], ..Sockets::default() };
        std::fs::remove_file(&path).unwrap();
        assert!(sockets.unix(&path).unwrap().is_none());
        assert!(sockets.left().is_empty());
    }
}
