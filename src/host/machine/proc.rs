//! What the kernel tells of processes and sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::host::Listener;
use crate::model::Port;

/// The kernel's word for a socket that listens (`include/net/tcp_states.h`).
const LISTEN: &str = "0A";

/// Who gets what is sent to the port on 127.0.0.1; when nobody does, who listens on it at another address.
pub(in crate::host) fn listener(port: Port) -> io::Result<Listener> {
    let tcp = std::fs::read_to_string("/proc/net/tcp")?;
    let tcp6 = std::fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    Ok(find_listener(port, &tcp, &tcp6))
}

fn find_listener(port: Port, tcp: &str, tcp6: &str) -> Listener {
    let rows = tcp.lines().chain(tcp6.lines()).filter_map(listening);
    let of_port = rows.filter(|&(_, row_port, _)| row_port == port.get());
    match of_port.min_by_key(|&(address, ..)| rank(address)) {
        Some((.., uid)) => Listener::Owned { uid },
        None => Listener::None,
    }
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

/// Address, port and user of a row that is a listening socket. A row with inode 0 belongs to nobody, though it
/// says user 0.
fn listening(row: &str) -> Option<(IpAddr, u16, u32)> {
    let mut fields = row.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let (_remote, state) = (fields.next()?, fields.next()?);
    let (uid, inode) = (fields.nth(3)?, fields.nth(1)?);
    if state != LISTEN || inode == "0" {
        return None;
    }
    Some((parse_address(address)?, u16::from_str_radix(port, 16).ok()?, uid.parse().ok()?))
}

/// Words of 32 bits, each in the machine's own byte order.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// The effective user of a process, or `None` when there is no such process.
pub(in crate::host) fn uid_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";

    fn row(address: &str, state: &str, uid: u32, inode: u32) -> String {
        format!(
            "   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5}        0 {inode} 1 0 100 0 0 10 0"
        )
    }

    fn who(tcp: &[String], tcp6: &[String]) -> Option<u32> {
        let text = |rows: &[String]| format!("{HEAD}\n{}\n", rows.join("\n"));
        match find_listener(Port::try_from(18000).unwrap(), &text(tcp), &text(tcp6)) {
            Listener::Owned { uid } => Some(uid),
            Listener::None => None,
        }
    }

    // 18000 is 0x4650.
    const LOCAL: &str = "0100007F:4650";
    const ANY: &str = "00000000:4650";
    const ANY6: &str = "00000000000000000000000000000000:4650";

    #[test]
    fn the_socket_that_gets_the_connection_is_told() {
        assert_eq!(who(&[], &[]), None);
        assert_eq!(who(&[row(LOCAL, "0A", 7, 99)], &[]), Some(7));
        assert_eq!(who(&[row(ANY, "0A", 8, 98), row(LOCAL, "0A", 7, 99)], &[]), Some(7));
        assert_eq!(who(&[row(ANY, "0A", 8, 98)], &[row(ANY6, "0A", 9, 97)]), Some(8));
        assert_eq!(who(&[], &[row(ANY6, "0A", 9, 97)]), Some(9));
        assert_eq!(who(&[row("0101A8C0:4650", "0A", 5, 96)], &[]), Some(5));
    }

    #[test]
    fn what_does_not_listen_or_belongs_to_nobody_is_ignored() {
        assert_eq!(who(&[row(LOCAL, "01", 7, 99)], &[]), None);
        assert_eq!(who(&[row(LOCAL, "0A", 0, 0)], &[]), None);
        assert_eq!(who(&[row("0100007F:4651", "0A", 7, 99)], &[]), None);
        assert_eq!(who(&["nonsense".to_owned()], &[row("zz:4650", "0A", 1, 1)]), None);
    }

    #[test]
    fn a_real_socket_is_found_with_its_user() {
        let (port, _socket) = (Port::FIRST..=Port::LAST)
            .find_map(|port| Some((port, std::net::TcpListener::bind(("127.0.0.1", port)).ok()?)))
            .unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        assert_eq!(listener(Port::try_from(port).unwrap()).unwrap(), Listener::Owned { uid });
        assert_eq!(uid_of(std::process::id()), Some(uid));
    }
}
