//! What the kernel tells of TCP sockets, by `sock_diag(7)`.
//!
//! **Invariant:** it asks for the sockets in question and no others. The tables in `/proc/net` list every socket of the
//! machine; while connections come and go, they skip some and show others twice.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;

use super::Listener;
use crate::model::Port;

/// Stands for any cookie: sockets are asked for by their ends (`INET_DIAG_NOCOOKIE`).
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// The user whose socket has its own end at `near` and the other at `far`, as a client's has seen from a server whose
/// connection comes from `near`. `None` when there is none, or when nobody has it any more. Blocks.
///
/// # Errors
/// When the kernel does not answer.
pub fn owner(near: SocketAddr, far: SocketAddr) -> io::Result<Option<u32>> {
    let (near, far) = (canonical(near), canonical(far));
    let id = SocketId {
        source_port: near.1,
        destination_port: far.1,
        source_address: near.0,
        destination_address: far.0,
        interface_id: 0,
        cookie: NO_COOKIE,
    };
    let family = if near.0.is_ipv4() { AF_INET } else { AF_INET6 };
    let found = match ask(NLM_F_REQUEST, family, StateFlags::all(), id) {
        Err(err) if is_not_there(&err) => return Ok(None),
        found => found?,
    };
    // Where no connection has these ends, the kernel answers with who listens at the near one.
    let own = found.into_iter().find(|socket| {
        let id = &socket.socket_id;
        (id.source_address.to_canonical(), id.source_port) == near
            && (id.destination_address.to_canonical(), id.destination_port) == far
    });
    Ok(own.filter(is_held).map(|socket| socket.uid))
}

/// Who gets what is sent to the port on 127.0.0.1; when nobody does, who listens on it at another address. Blocks.
pub(super) fn listener(port: Port) -> io::Result<Listener> {
    let mut rows = Vec::new();
    for (family, id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let id = SocketId { source_port: port.get(), ..id };
        let found = ask(NLM_F_REQUEST | NLM_F_DUMP, family, StateFlags::LISTEN, id).map_err(|err| {
            if is_not_there(&err) { io::Error::other("the kernel's module `tcp_diag` is not loaded") } else { err }
        })?;
        rows.extend(found);
    }
    let first = rows.into_iter().filter(is_held).min_by_key(|row| rank(row.socket_id.source_address));
    Ok(first.map_or(Listener::None, |row| Listener::Owned { uid: row.uid }))
}

/// The kernel hands a connection to the socket bound most closely to its address, and to IPv4 before IPv6
/// (`inet_lhash2_lookup`).
fn rank(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => 0,
        IpAddr::V6(address) if address == Ipv4Addr::LOCALHOST.to_ipv6_mapped() => 1,
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => 2,
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => 3,
        _ => 4,
    }
}

/// A socket that no process has any more says user 0, and has no inode.
fn is_held(socket: &InetResponseHeader) -> bool {
    socket.inode != 0
}

/// The same for an IPv4 address and for the same written as IPv6.
fn canonical(end: SocketAddr) -> (IpAddr, u16) {
    (end.ip().to_canonical(), end.port())
}

fn is_not_there(err: &io::Error) -> bool {
    err.raw_os_error() == Some(Errno::ENOENT as i32)
}

fn ask(flags: u16, family: u8, states: StateFlags, socket_id: SocketId) -> io::Result<Vec<InetResponseHeader>> {
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id };
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let mut sockets = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            match answer.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => sockets.push(found.header),
                NetlinkPayload::Error(err) => return Err(err.to_io()),
                _ => return Ok(sockets),
            }
            if flags & NLM_F_DUMP != NLM_F_DUMP {
                return Ok(sockets);
            }
            let length = usize::try_from(answer.header.length).expect("a length of 32 bits fits");
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use rstest::rstest;

    use super::*;

    fn me() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    #[rstest]
    #[case::v4("127.0.0.1:0", "127.0.0.1")]
    #[case::v6("[::1]:0", "::1")]
    #[case::v4_taken_by_a_socket_of_v6("[::]:0", "127.0.0.1")]
    fn a_connection_is_its_users_until_it_is_closed(#[case] listen: &str, #[case] to: IpAddr) {
        let listener = TcpListener::bind(listen).unwrap();
        let address = SocketAddr::new(to, listener.local_addr().unwrap().port());
        let client = TcpStream::connect(address).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let local = server.local_addr().unwrap();
        assert_eq!(owner(peer, local).unwrap(), Some(me()));
        assert_eq!(owner(local, peer).unwrap(), Some(me()), "the server's own socket");
        drop(client);
        assert_eq!(owner(peer, local).unwrap(), None, "nobody has it any more");
        assert_eq!(owner(local, peer).unwrap(), Some(me()), "the server still has its end");
    }

    #[test]
    fn who_listens_is_not_who_is_connected() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (listens, nobody) = (listener.local_addr().unwrap(), "127.0.0.1:1".parse().unwrap());
        assert_eq!(owner(listens, nobody).unwrap(), None);
        assert_eq!(owner(nobody, listens).unwrap(), None);
    }

    #[test]
    fn the_kernel_prefers_the_closest_address_and_ipv4() {
        let order = ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0", "::", "192.0.2.1"];
        let ranks = order.map(|address| rank(address.parse().unwrap()));
        assert!(ranks.is_sorted(), "{ranks:?}");
    }

    #[rstest]
    fn a_listener_is_found_with_its_user(#[values("127.0.0.1", "0.0.0.0", "::", "::1")] address: IpAddr) {
        let (port, _socket) = (Port::FIRST..=Port::LAST)
            .rev()
            .find_map(|port| Some((port, TcpListener::bind((address, port)).ok()?)))
            .unwrap();
        assert_eq!(listener(Port::try_from(port).unwrap()).unwrap(), Listener::Owned { uid: me() });
    }
}
