//! One question to one DNS server, by UDP (RFC 1035, section 4.2.1).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, TYPE};
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::timeout;

use crate::chance::chance;

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// The largest answer, in bytes: more than any server sends by UDP to who has not said that he takes it.
const SIZE_MAX: usize = 4_096;

/// The texts at `name`, as `server` has them: an address or a host, with a port.
pub(super) async fn texts(server: &str, name: &str) -> io::Result<Vec<String>> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in timeout(ANSWER_MAX, lookup_host(server)).await?? {
        match timeout(ANSWER_MAX, ask(address, name)).await {
            Ok(Ok(texts)) => return Ok(texts),
            Ok(Err(err)) => last = err,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no answer"),
        }
    }
    Err(last)
}

async fn ask(server: SocketAddr, name: &str) -> io::Result<Vec<String>> {
    let from: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(from).await?;
    // From here on nobody else is heard.
    socket.connect(server).await?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is below 65536")]
    let id = (chance() * 65_536.0) as u16;
    socket.send(&question(id, name).map_err(io::Error::other)?).await?;
    let mut answer = [0; SIZE_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        if let Some(texts) = texts_of(id, &answer[..length]) {
            return Ok(texts);
        }
    }
}

/// A question for the texts at `name`. A server that answers for others is asked to look, too.
fn question(id: u16, name: &str) -> simple_dns::Result<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(Name::new(name)?, QTYPE::TYPE(TYPE::TXT), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec()
}

/// The texts of an answer, if it is that to the question. Texts of more than one string are put together.
fn texts_of(id: u16, answer: &[u8]) -> Option<Vec<String>> {
    let packet = Packet::parse(answer).ok().filter(|packet| packet.id() == id)?;
    let text = |data: RData<'_>| match data {
        RData::TXT(text) => String::try_from(text).ok(),
        _ => None,
    };
    Some(packet.answers.into_iter().filter_map(|answer| text(answer.rdata)).collect())
}

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::TXT;

    use super::*;

    #[tokio::test]
    async fn the_texts_of_a_name_are_asked_of_one_server() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let answering = async {
            let mut asked = [0; 512];
            let (length, from) = server.recv_from(&mut asked).await.unwrap();
            let question = Packet::parse(&asked[..length]).unwrap();
            assert_eq!(question.questions[0].qname.to_string(), "_acme-challenge.shop.example");
            let mut answer = Packet::new_reply(question.id());
            for text in ["one", "two"] {
                let data = RData::TXT(TXT::new().with_string(text).unwrap());
                let name = Name::new("_acme-challenge.shop.example").unwrap();
                answer.answers.push(ResourceRecord::new(name, CLASS::IN, 60, data));
            }
            let other = Packet::new_reply(question.id().wrapping_add(1));
            // An answer to something else is none.
            server.send_to(&other.build_bytes_vec().unwrap(), from).await.unwrap();
            server.send_to(&answer.build_bytes_vec().unwrap(), from).await.unwrap();
        };
        let (texts, ()) = tokio::join!(texts(&address, "_acme-challenge.shop.example"), answering);
        assert_eq!(texts.unwrap(), ["one", "two"]);
    }

    #[test]
    fn what_is_no_answer_is_told_from_an_empty_one() {
        assert_eq!(texts_of(7, b"junk"), None);
        let empty = Packet::new_reply(7).build_bytes_vec().unwrap();
        assert_eq!((texts_of(7, &empty), texts_of(8, &empty)), (Some(vec![]), None));
    }
}
