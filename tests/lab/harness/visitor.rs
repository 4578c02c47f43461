//! Visitors that stay: WebSockets, and what services keep for them.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::Method;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::http::{request, send};
use super::{Lab, ROUTER};

/// How long an echo may take.
const ECHO_MAX: Duration = Duration::from_secs(5);

/// How long a close may take: longer than any drain.
const CLOSE_MAX: Duration = Duration::from_secs(40);

/// A WebSocket to a test's service, through the router.
pub(crate) struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    /// Waits until the other side closes it; tells the code it gives for that.
    pub(crate) async fn closed(&mut self) -> Option<u16> {
        loop {
            match timeout(CLOSE_MAX, self.0.next()).await.expect("it is closed in time") {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// Sends a word and waits for its echo; `Err` when the socket has been cut.
    pub(crate) async fn echo(&mut self, word: &str) -> Result<(), String> {
        self.0.send(Message::text(word)).await.map_err(|err| format!("send: {err}"))?;
        match timeout(ECHO_MAX, self.0.next()).await {
            Ok(Some(Ok(Message::Text(text)))) if text.as_str() == word => Ok(()),
            Ok(Some(Ok(Message::Close(frame)))) => Err(format!("closed: {frame:?}")),
            Ok(Some(Ok(other))) => panic!("not an echo of `{word}`: {other:?}"),
            Ok(Some(Err(err))) => Err(format!("receive: {err}")),
            Ok(None) => Err("ended".to_owned()),
            Err(_) => panic!("no echo of `{word}` in time"),
        }
    }
}

impl Lab {
    /// Opens a WebSocket, and sees that it echoes.
    pub(crate) async fn web_socket(&self, host: &str) -> Socket {
        open_socket(host).await
    }

    /// Has a test's service keep something.
    pub(crate) async fn post_data(&self, host: &str, data: &str) {
        let answer = send(ROUTER, request(Method::POST, host, "/data", data.to_owned())).await;
        answer.expect("the router answers").expect(200);
    }
}

/// Opens a WebSocket, and sees that it echoes.
pub(crate) async fn open_socket(host: &str) -> Socket {
    let tcp = TcpStream::connect(ROUTER).await.expect("the router listens");
    let request = format!("ws://{host}/ws").into_client_request().expect("a valid request");
    let (socket, _) = tokio_tungstenite::client_async(request, tcp).await.expect("a WebSocket opens");
    let mut socket = Socket(socket);
    socket.echo("hello").await.expect("a new WebSocket echoes");
    socket
}
