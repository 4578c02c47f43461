//! Who is at the other end of a connection within this machine.
//!
//! **Invariant:** a doubt is a `None` or a `false`: a row that is missing, ambiguous or of inode 0 says nothing.

use std::ffi::CString;
use std::io::{self, BufRead as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// How often the kernel's table is read before a row counts as missing or ambiguous: while connections come and go,
/// one reading may skip a row, or show it beside that of an earlier connection with the same ends.
const READS: usize = 8;

/// The user whose socket is at the other end of a connection from `peer` to `local`. Blocks.
///
/// # Errors
/// When the kernel's table cannot be read.
pub(super) fn owner(peer: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    for _ in 0..READS {
        let mut owners = Vec::new();
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            let file = match std::fs::File::open(table) {
                Ok(file) => file,
                // A machine without IPv6.
                Err(err) if err.kind() == io::ErrorKind::NotFound && table.ends_with('6') => continue,
                Err(err) => return Err(err),
            };
            for row in io::BufReader::with_capacity(64 * 1024, file).lines() {
                owners.extend(row_of(&row?, peer, local));
            }
        }
        if let Some(Row { uid, inode }) = the_only(&owners) {
            return Ok((inode != 0).then_some(uid));
        }
    }
    Ok(None)
}

/// The row that was found, be it twice in one reading.
fn the_only(owners: &[Row]) -> Option<Row> {
    let first = *owners.first()?;
    owners.iter().all(|row| *row == first).then_some(first)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    uid: u32,
    inode: u64,
}

/// What a line of the table says, if it is that of the client's own socket: its local end is our peer.
fn row_of(line: &str, peer: SocketAddr, local: SocketAddr) -> Option<Row> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (near, far) = (parse_end(fields.next()?)?, parse_end(fields.next()?)?);
    let (uid, inode) = (fields.nth(4)?.parse().ok()?, fields.nth(1)?.parse().ok()?);
    (near == canonical(peer) && far == canonical(local)).then_some(Row { uid, inode })
}

/// The same for an IPv4 address and for the same written as IPv6.
fn canonical(end: SocketAddr) -> (IpAddr, u16) {
    (end.ip().to_canonical(), end.port())
}

/// `0100007F:0BB8`: words of 32 bits in the machine's own byte order, then the port.
fn parse_end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let bytes: [u8; 16] = [word(0)?, word(1)?, word(2)?, word(3)?].concat().try_into().ok()?;
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some((ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

/// Whether a user is root or a member of the group; `gid` is the group its process runs as, where that is known.
/// Blocks.
pub(super) fn is_operator(uid: u32, gid: Option<u32>, group: &str) -> bool {
    if uid == 0 {
        return true;
    }
    let Ok(Some(group)) = Group::from_name(group) else { return false };
    if gid.map(Gid::from_raw) == Some(group.gid) {
        return true;
    }
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group.gid))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const V4: &str = "   1: 0100007F:8AFC 0100007F:0BB8 01 00000000:00000000 00:00000000 00000000  1000        0 77812 1 \
                      0000000000000000 20 4 30 10 -1";
    const SERVER: &str =
        "   2: 0100007F:0BB8 0100007F:8AFC 01 00000000:00000000 00:00000000 00000000     0        0 77900 1";
    const CLOSED: &str =
        "   3: 0100007F:8AFC 0100007F:0BB8 06 00000000:00000000 03:000016C5 00000000     0        0 0 3";
    const MAPPED: &str = "   0: 0000000000000000FFFF00000100007F:8AFC 0000000000000000FFFF00000100007F:0BB8 01 \
                          00000000:00000000 00:00000000 00000000   998        0 4711 1";
    const V6: &str = "   0: 00000000000000000000000001000000:8AFC 00000000000000000000000001000000:0BB8 01 \
                      00000000:00000000 00:00000000 00000000     0        0 4712 1";
    const HEADING: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";

    #[cfg(target_endian = "little")]
    #[rstest]
    #[case::the_clients_socket(V4, "127.0.0.1:35580", "127.0.0.1:3000", Some((1000, 77812)))]
    #[case::another_port(V4, "127.0.0.1:35581", "127.0.0.1:3000", None)]
    #[case::to_another_listener(V4, "127.0.0.1:35580", "127.0.0.1:3001", None)]
    #[case::the_servers_own_socket(SERVER, "127.0.0.1:35580", "127.0.0.1:3000", None)]
    #[case::a_closed_socket(CLOSED, "127.0.0.1:35580", "127.0.0.1:3000", Some((0, 0)))]
    #[case::v4_as_v6(MAPPED, "127.0.0.1:35580", "127.0.0.1:3000", Some((998, 4711)))]
    #[case::v4_as_v6_on_both_sides(MAPPED, "[::ffff:127.0.0.1]:35580", "[::ffff:127.0.0.1]:3000", Some((998, 4711)))]
    #[case::v6(V6, "[::1]:35580", "[::1]:3000", Some((0, 4712)))]
    #[case::v6_is_not_v4(V6, "127.0.0.1:35580", "127.0.0.1:3000", None)]
    #[case::the_heading(HEADING, "127.0.0.1:35580", "127.0.0.1:3000", None)]
    #[case::nothing("", "127.0.0.1:35580", "127.0.0.1:3000", None)]
    #[case::cut_off("   1: 0100007F:8AFC 0100007F:0BB8 01 0", "127.0.0.1:35580", "127.0.0.1:3000", None)]
    fn a_row_counts_only_for_its_own_connection(
        #[case] line: &str,
        #[case] peer: SocketAddr,
        #[case] local: SocketAddr,
        #[case] expected: Option<(u32, u64)>,
    ) {
        assert_eq!(row_of(line, peer, local), expected.map(|(uid, inode)| Row { uid, inode }));
    }

    #[test]
    fn a_row_shown_twice_is_one_and_two_different_ones_are_none() {
        let row = |uid, inode| Row { uid, inode };
        assert_eq!(the_only(&[]), None);
        assert_eq!(the_only(&[row(1000, 7), row(1000, 7)]), Some(row(1000, 7)));
        assert_eq!(the_only(&[row(0, 0), row(1000, 7)]), None);
        assert_eq!(the_only(&[row(1000, 7), row(1000, 8)]), None);
    }

    #[test]
    fn a_socket_of_our_own_is_ours_until_it_is_closed() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else { continue };
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let local = server.local_addr().unwrap();
            assert_eq!(owner(peer, local).unwrap(), Some(Uid::effective().as_raw()));
            drop(client);
            assert_eq!(owner(peer, local).unwrap(), None, "a closed socket shows user 0");
        }
    }

    #[test]
    fn root_and_members_of_the_group_are_operators() {
        assert!(is_operator(0, None, "no-such-group"));
        assert!(!is_operator(65_534, None, "no-such-group"));
        assert!(!is_operator(4_000_000, None, "root"), "a user nobody knows");
        assert!(is_operator(4_000_000, Some(0), "root"), "by the group of its process");
        assert!(!is_operator(65_534, Some(65_534), "root"));
    }
}
