//! Calls of many small messages, such as gRPC's, most of which wait for whoever takes them.

use rstest::rstest;
use tokio::sync::watch;

use super::services::{call, route, service};
use super::*;

/// Calls at a time on one connection.
const CALLS: usize = 8;
/// Messages of each: more than a stream's window holds.
const MESSAGES: usize = 15_000;
/// Of all calls together: more than the other side and what is sent to it hold, less than all windows do.
const BACKLOG: usize = 50_000;
const MESSAGE: &[u8] = &[7; 20];

/// Sends a call's messages, and counts them.
async fn send_messages(stream: &mut SendStream<Bytes>, sent: &watch::Sender<usize>) {
    for _ in 0..MESSAGES {
        send_part(stream, Bytes::from_static(MESSAGE)).await;
        sent.send_modify(|sent| *sent += 1);
    }
    stream.send_data(Bytes::new(), true).unwrap();
}

/// Takes a call's messages, but none before `backlog` were sent altogether; how many bytes there were.
async fn take_messages(body: &mut RecvStream, sent: &watch::Sender<usize>, backlog: usize) -> usize {
    patiently(sent.subscribe().wait_for(|sent| *sent >= backlog)).await.unwrap();
    read(body).await.unwrap().len()
}

#[rstest]
#[case::taken_at_once(0)]
#[case::taken_late(BACKLOG)]
#[tokio::test]
async fn requests_of_many_small_messages_pass(#[case] backlog: usize) {
    let sent = watch::Sender::new(0);
    let counted = sent.clone();
    let service = service(move |request, mut respond, _| {
        let counted = counted.clone();
        async move {
            let bytes = take_messages(&mut request.into_body(), &counted, backlog).await;
            let mut answer = respond.send_response(Response::new(()), false).unwrap();
            answer.send_data(bytes.to_string().into(), true).unwrap();
        }
    })
    .await;
    let front = Front::start(route(&service)).await;
    let mut visitor = Http2::connect(&front).await;
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let (response, mut stream) = visitor.begin(call()).await;
        let sent = sent.clone();
        calls.spawn(async move {
            send_messages(&mut stream, &sent).await;
            assert_eq!(Reply::read(response).await.unwrap().text(), (MESSAGE.len() * MESSAGES).to_string());
        });
    }
    calls.join_all().await;
}

#[rstest]
#[case::taken_at_once(0)]
#[case::taken_late(BACKLOG)]
#[tokio::test]
async fn answers_of_many_small_messages_pass(#[case] backlog: usize) {
    let sent = watch::Sender::new(0);
    let counted = sent.clone();
    let service = service(move |_, mut respond, _| {
        let counted = counted.clone();
        async move {
            let mut answer = respond.send_response(Response::new(()), false).unwrap();
            send_messages(&mut answer, &counted).await;
        }
    })
    .await;
    let front = Front::start(route(&service)).await;
    let mut visitor = Http2::connect(&front).await;
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let response = visitor.begin(call()).await.0;
        let sent = sent.clone();
        calls.spawn(async move {
            let mut body = patiently(response).await.unwrap().into_body();
            assert_eq!(take_messages(&mut body, &sent, backlog).await, MESSAGE.len() * MESSAGES);
        });
    }
    calls.join_all().await;
}
