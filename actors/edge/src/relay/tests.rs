use tokio::io::duplex;
use tokio_util::sync::CancellationToken;

use super::*;

const CLOSE: Manner = Manner { websocket: true, idle: None };

struct World {
    client: tokio::io::DuplexStream,
    machine: tokio::io::DuplexStream,
    leaving: CancellationToken,
    relayed: tokio::task::JoinSet<Passed>,
}

fn world(manner: Manner) -> World {
    let (client, near) = duplex(1 << 16);
    let (machine, far) = duplex(1 << 16);
    let leaving = CancellationToken::new();
    let left = leaving.clone();
    let mut relayed = tokio::task::JoinSet::new();
    relayed.spawn(async move { relay(near, far, manner, left.cancelled(), std::future::pending()).await });
    World { client, machine, leaving, relayed }
}

/// A text frame without a mask.
fn text(payload: &[u8]) -> Vec<u8> {
    [&[0x81, payload.len() as u8][..], payload].concat()
}

async fn expect(stream: &mut tokio::io::DuplexStream, bytes: &[u8]) {
    let mut read = vec![0; bytes.len()];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(read, bytes);
}

#[tokio::test]
async fn http_11_a_close_frame_comes_between_two_frames_and_both_ends_get_one() {
    let World { mut client, mut machine, leaving, mut relayed } = world(CLOSE);
    let frame = text(b"hello");
    machine.write_all(&frame[..3]).await.unwrap();
    expect(&mut client, &frame[..3]).await;
    leaving.cancel();
    // The client's direction is between two frames: the Machine is told at once, masked.
    let mut close = [0; 8];
    machine.read_exact(&mut close).await.unwrap();
    assert_eq!(close[..2], [0x88, 0x82]);
    let mask = [close[2], close[3], close[4], close[5]];
    assert_eq!(&close[..], close_frame(SERVICE_RESTART, Some(mask)));
    // The other one ends its frame first; what comes after it does not pass.
    machine.write_all(&[&frame[3..], &text(b"too late")].concat()).await.unwrap();
    expect(&mut client, &[&frame[3..], &close_frame(SERVICE_RESTART, None)].concat()).await;
    // Both answer, and everything ends.
    client.write_all(&close_frame(SERVICE_RESTART, Some([1, 2, 3, 4]))).await.unwrap();
    machine.write_all(&close_frame(SERVICE_RESTART, None)).await.unwrap();
    let passed = relayed.join_next().await.unwrap().unwrap();
    assert_eq!((passed.why, passed.sent, passed.received), (Why::Leaving, frame.len() as u64, 0));
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    machine.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"");
}

#[tokio::test(start_paused = true)]
async fn http_11_who_does_not_answer_a_close_frame_is_not_waited_for() {
    let World { mut client, mut machine, leaving, mut relayed } = world(CLOSE);
    leaving.cancel();
    expect(&mut client, &close_frame(SERVICE_RESTART, None)).await;
    let passed = relayed.join_next().await.unwrap().unwrap();
    assert_eq!(passed.why, Why::Leaving);
    let mut rest = Vec::new();
    machine.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest.len(), 8, "its close frame, then the end");
}

#[tokio::test]
async fn a_close_that_the_ends_agreed_on_is_left_alone() {
    let World { mut client, mut machine, leaving, mut relayed } = world(CLOSE);
    let own = close_frame(1000, None);
    machine.write_all(&own).await.unwrap();
    expect(&mut client, &own).await;
    leaving.cancel();
    client.write_all(&close_frame(1000, Some([1, 2, 3, 4]))).await.unwrap();
    relayed.join_next().await.unwrap().unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"", "not a second one");
}

#[tokio::test]
async fn what_is_no_websocket_passes_half_closed_and_stays_when_an_end_leaves() {
    let World { mut client, mut machine, leaving, mut relayed } =
        world(Manner { websocket: false, idle: None });
    leaving.cancel();
    client.write_all(b"\x81 any bytes").await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    machine.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"\x81 any bytes");
    machine.write_all(b"later").await.unwrap();
    expect(&mut client, b"later").await;
    drop(machine);
    let passed = relayed.join_next().await.unwrap().unwrap();
    assert_eq!((passed.why, passed.received, passed.sent), (Why::Done, 11, 5));
}
