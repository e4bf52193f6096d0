//! Questions, streams of frames, gossip.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::*;
use super::bench::*;

#[tokio::test]
async fn a_question_is_answered_by_the_node_that_was_asked_and_a_refusal_keeps_its_words() {
    let (_cluster, [a, b]) = Cluster::of();
    assert_eq!(a.echo(2, "hello").await.unwrap(), "\u{1}hello");
    assert_eq!(b.echo(1, "hello").await.unwrap(), "\u{2}hello");
    assert_eq!(a.backhaul.ask(number(2), Ask::Ping, PATIENCE).await.unwrap(), "");
    let refused = a.backhaul.ask(number(2), Ask::Barrier(vec![]), PATIENCE).await.unwrap_err();
    assert_eq!(refused, AskError::Refused { node: number(2), reason: "no such thing".into() });
    let unknown = a.echo(9, "x").await.unwrap_err();
    assert_eq!(unknown, AskError::Open(OpenError::Unknown(number(9))));
    let late = a.backhaul.ask(number(2), Ask::Version, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(late, AskError::Timeout(number(2)));
    assert!(!a.report(2).suspect, "one who thinks for long is not suspect");
}

#[tokio::test]
async fn a_request_streams_both_ways() {
    let (_cluster, [a, mut b]) = Cluster::of();
    let head = Frame::RequestHead(skein_core::wire::RequestHead {
        method: "POST".into(),
        target: "/echo".into(),
        headers: [(http::HeaderName::from_static("x"), http::HeaderValue::from_static("y"))]
            .into_iter()
            .collect(),
    });
    let mut mine = a.backhaul.open_with(number(2), preamble(), [head.clone()]).await.unwrap();
    let (from, received, mut theirs) = b.seen.requests.recv().await.unwrap();
    assert_eq!((from, received), (number(1), preamble()));
    assert_eq!(theirs.recv.next().await.unwrap(), Some(head));

    // Longer than one frame may be: it is cut into several.
    let body = Bytes::from(vec![7; 3 * skein_core::wire::MAX_DATA + 5]);
    mine.send.send_all([Frame::Data(body.clone()), Frame::Trailers(vec![])]).await.unwrap();
    mine.send.finish().unwrap();
    let mut got = Vec::new();
    while let Some(frame) = theirs.recv.next().await.unwrap() {
        if let Frame::Data(data) = &frame {
            got.extend_from_slice(data);
        } else {
            assert_eq!(frame, Frame::Trailers(vec![]));
        }
    }
    assert_eq!(got, body);
    assert_eq!(theirs.recv.next().await, Ok(None), "the end stays the end");
    let (mut send, _) = theirs.split();
    send.send(Frame::Trailers(vec![("t".into(), "v".into())])).await.unwrap();
    send.finish().unwrap();
    assert_eq!(mine.recv.next().await.unwrap(), Some(Frame::Trailers(vec![("t".into(), "v".into())])));
    assert_eq!(mine.recv.next().await, Ok(None));
    assert_eq!(send.send(Frame::Upgraded).await, Err(StreamError::Closed));
}

#[tokio::test]
async fn a_reader_that_stalls_holds_its_sender_back_and_nobody_else() {
    let (_cluster, [a, mut b]) = Cluster::of();
    let mut mine = a.backhaul.open(number(2), preamble()).await.unwrap();
    let (_, _, mut theirs) = b.seen.requests.recv().await.unwrap();
    let megabyte = Bytes::from(vec![1; 1 << 20]);
    let mut sent = 0;
    // The window of a stream is one megabyte: of eight, most must wait.
    let sending = async {
        while sent < 8 {
            mine.send.send(Frame::Data(megabyte.clone())).await.unwrap();
            sent += 1;
        }
        mine.send.send(Frame::Trailers(vec![])).await.unwrap();
        mine.send.finish().unwrap();
    };
    tokio::pin!(sending);
    let other = async {
        for _ in 0..100 {
            a.echo(2, "still here").await.unwrap();
        }
    };
    tokio::select! {
        () = &mut sending => panic!("nobody reads, yet all was sent"),
        () = other => {}
    }
    let mut received = 0;
    let receiving = async {
        while let Some(frame) = theirs.recv.next().await.unwrap() {
            if let Frame::Data(data) = frame {
                received += data.len();
            }
        }
    };
    tokio::join!(sending, receiving);
    assert_eq!(received, 8 << 20);
}

#[tokio::test]
async fn a_stream_that_ends_without_trailers_was_truncated_and_one_given_up_was_reset() {
    let (_cluster, [a, mut b]) = Cluster::of();
    let mut mine = a.backhaul.open(number(2), preamble()).await.unwrap();
    let (_, _, mut theirs) = b.seen.requests.recv().await.unwrap();
    mine.send.send(Frame::Data("half".into())).await.unwrap();
    mine.send.finish().unwrap();
    assert_eq!(theirs.recv.next().await, Ok(Some(Frame::Data("half".into()))));
    assert_eq!(theirs.recv.next().await, Err(StreamError::Truncated));
    assert_eq!(theirs.recv.next().await, Err(StreamError::Truncated));

    let mine = a.backhaul.open(number(2), preamble()).await.unwrap();
    let (_, _, mut theirs) = b.seen.requests.recv().await.unwrap();
    let (send, mut recv) = mine.split();
    drop(send);
    assert_eq!(theirs.recv.next().await, Err(StreamError::Reset(0x10)));
    drop(theirs);
    assert_eq!(recv.next().await, Err(StreamError::Reset(0x10)));

    let mut mine = a.backhaul.open(number(2), preamble()).await.unwrap();
    let (_, _, mut theirs) = b.seen.requests.recv().await.unwrap();
    theirs.recv.cancel();
    assert_eq!(mine.send.stopped().await, StreamError::Reset(0x10));
    assert_eq!(theirs.recv.next().await, Err(StreamError::Closed));
}

#[tokio::test]
async fn after_an_upgrade_raw_bytes_flow_both_ways_and_none_is_lost() {
    let (_cluster, [a, mut b]) = Cluster::of();
    let mut mine = a.backhaul.open(number(2), preamble()).await.unwrap();
    let (_, _, mut theirs) = b.seen.requests.recv().await.unwrap();
    mine.send.send(Frame::Upgraded).await.unwrap();
    let mut up = mine.send.into_raw();
    up.write_all(b"raw bytes, right behind the frame").await.unwrap();
    up.shutdown().await.unwrap();
    assert_eq!(theirs.recv.next().await, Ok(Some(Frame::Upgraded)));
    let mut text = String::new();
    theirs.recv.into_raw().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "raw bytes, right behind the frame");
    let mut down = theirs.send.into_raw();
    down.write_all(b"back").await.unwrap();
    drop(down);
    let mut bytes = Vec::new();
    let cut = mine.recv.into_raw().read_to_end(&mut bytes).await;
    assert_eq!(cut.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "cut off, not ended");
}

#[tokio::test]
async fn a_thousand_streams_at_once_share_one_connection() {
    let (_cluster, [a, mut b]) = Cluster::of();
    a.connected(2).await;
    let mut open = Vec::new();
    for _ in 0..1_000 {
        open.push(a.backhaul.open(number(2), preamble()).await.unwrap());
    }
    let mut taken = Vec::new();
    for _ in 0..1_000 {
        taken.push(b.seen.requests.recv().await.unwrap());
    }
    assert_eq!(a.echo(2, "and a question").await.unwrap(), "\u{1}and a question");
    assert!(a.conns(2).len() <= 2, "two at most, when both dialled at once");
    drop((open, taken));
    eventually(
        || a.conns(2).iter().map(|conn| conn.in_flight.load(Ordering::Relaxed)).sum::<usize>(),
        |in_flight| *in_flight == 0,
    )
    .await;
}

#[tokio::test]
async fn gossip_travels_as_a_datagram_or_as_a_stream_when_it_is_large() {
    let (_cluster, [a, mut b]) = Cluster::of();
    // Before there is a connection the last two are kept.
    for text in ["dropped", "kept", "kept too"] {
        a.backhaul.send_gossip(number(2), text.into());
    }
    let mut first = [b.seen.gossip.recv().await.unwrap(), b.seen.gossip.recv().await.unwrap()];
    first.sort();
    assert_eq!(first, [(number(1), "kept".into()), (number(1), "kept too".into())]);
    assert_eq!(a.backhaul.counts().gossip_dropped, 1);
    let large = Bytes::from(vec![5; 100_000]);
    a.backhaul.send_gossip(number(2), large.clone());
    assert_eq!(b.seen.gossip.recv().await.unwrap(), (number(1), large));
    a.backhaul.send_gossip(number(9), "to nobody".into());
    assert_eq!(a.backhaul.counts().gossip_dropped, 2);
}

#[tokio::test]
async fn requests_come_on_a_core_and_questions_beside_it() {
    let core = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = core.handle().clone();
    let end = CancellationToken::new();
    let ended = end.clone();
    let named = std::thread::Builder::new().name("core".into());
    let thread = named.spawn(move || core.block_on(ended.cancelled())).unwrap();

    let mut cluster = Cluster::new();
    let (one, two) = (cluster.identity(1), cluster.identity(2));
    let a = cluster.start(one, |_| {});
    let mut b = cluster.start(two, |config| config.cores = vec![handle]);
    for node in [&a, &b] {
        node.backhaul.set_peers(&cluster.peers);
    }
    assert_eq!(a.echo(2, "x").await.unwrap(), "\u{1}x");
    let (what, name) = b.seen.threads.recv().await.unwrap();
    assert_eq!(what, "question");
    assert_ne!(name.as_deref(), Some("core"), "a question may take its time");
    let _stream = a.backhaul.open(number(2), preamble()).await.unwrap();
    assert_eq!(b.seen.threads.recv().await.unwrap(), ("request", Some("core".into())));
    // The other way, too: the dial and the streams of a node with cores.
    assert_eq!(b.echo(1, "x").await.unwrap(), "\u{2}x");

    a.backhaul.close(PATIENCE).await;
    b.backhaul.close(PATIENCE).await;
    end.cancel();
    thread.join().unwrap();
}

#[tokio::test]
async fn who_drops_a_message_that_has_come_whole_says_nothing() {
    let (_cluster, [a, mut b]) = Cluster::of();
    let mut mine = a.backhaul.open_with(number(2), preamble(), [Frame::Trailers(vec![])]).await.unwrap();
    mine.send.finish().unwrap();
    let (_, _, mut theirs) = b.seen.requests.recv().await.unwrap();
    assert_eq!(theirs.recv.next().await.unwrap(), Some(Frame::Trailers(vec![])));
    // What was sent before this question has come when it is answered.
    a.echo(2, "x").await.unwrap();
    drop(theirs.recv);
    a.echo(2, "x").await.unwrap();
    let stops = |node: &Node, to| node.conns(to)[0].connection.stats().frame_tx.stop_sending;
    assert_eq!(stops(&b, 1), 0);
    // One that was not read to its end is stopped.
    let _more = a.backhaul.open(number(2), preamble()).await.unwrap();
    drop(b.seen.requests.recv().await.unwrap());
    a.echo(2, "x").await.unwrap();
    assert_eq!(stops(&b, 1), 1);
}

#[tokio::test]
async fn garbage_from_a_peer_resets_its_stream_only() {
    let (_cluster, [a, mut b]) = Cluster::of();
    a.connected(2).await;
    let mut innocent = a.backhaul.open(number(2), preamble()).await.unwrap();
    let (_, _, mut theirs) = b.seen.requests.recv().await.unwrap();
    let raw = &a.conns(2)[0].connection;
    let mut not_first = Vec::new();
    assert_eq!(Frame::Trailers(vec![]).encode(&mut not_first), None);
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[3, 0xff, 0xff, 0xff, 0xff], &not_first] {
        let (mut send, mut recv) = raw.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        let answer = recv.read_to_end(1_000).await.unwrap_err();
        assert_eq!(
            answer,
            quinn::ReadToEndError::Read(quinn::ReadError::Reset(stream::GARBAGE)),
            "{bytes:?}"
        );
    }
    let (mut send, _recv) = raw.open_bi().await.unwrap();
    send.write_all(&[0, 0, 0, 0, 9]).await.unwrap();
    send.finish().unwrap();
    let mut uni = raw.open_uni().await.unwrap();
    uni.write_all(&[99; 40]).await.unwrap();
    raw.send_datagram(Bytes::from_static(&[77, 1, 2])).unwrap();
    eventually(|| b.backhaul.counts().garbage, |garbage| *garbage == 5).await;
    innocent.send.send(Frame::Data("unharmed".into())).await.unwrap();
    assert_eq!(theirs.recv.next().await, Ok(Some(Frame::Data("unharmed".into()))));
}
