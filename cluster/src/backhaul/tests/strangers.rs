//! Who is let in (SPEC CLU-1): each refusal beside what is granted.

use std::collections::BTreeSet;

use super::super::*;
use super::bench::*;
use crate::identity::Authority;

/// Presents itself to node 1 of `cluster` with this configuration; why the connection ended.
async fn knock(cluster: &Cluster, config: quinn::ClientConfig) -> quinn::ConnectionError {
    let at = cluster.peers[&number(1)].addr;
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    match endpoint.connect_with(config, at, "n1.skein").unwrap().await {
        Ok(connection) => tokio::time::timeout(PATIENCE, connection.closed()).await.expect("it is refused"),
        Err(error) => error,
    }
}

/// Trusts `authority` and presents the certificate of `identity`, if any.
fn client(authority: &Authority, identity: Option<&Identity>) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate().to_vec().into()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(identity) => {
            config.with_client_auth_cert(vec![identity.certificate()], identity.key().private()).unwrap()
        }
    };
    config.alpn_protocols = vec![skein_core::wire::ALPN.to_vec()];
    quinn::ClientConfig::new(Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap()))
}

#[tokio::test]
async fn strangers_are_refused_counted_and_harm_nobody() {
    let (mut cluster, [a, b]) = Cluster::of();
    let none = knock(&cluster, client(&cluster.authority, None)).await;
    assert!(none.to_string().contains("it has no certificate"), "{none}");
    assert_eq!(a.backhaul.counts().strangers, 1);

    // A certificate of an authority of its own, for a number that exists.
    let own = Cluster::new().identity(2);
    let self_made = knock(&cluster, client(&cluster.authority, Some(&own))).await;
    assert!(matches!(self_made, quinn::ConnectionError::ConnectionClosed(_)), "{self_made}");
    eventually(|| a.backhaul.counts().strangers, |strangers| *strangers == 2).await;

    // Signed by the authority, but not with the key that the registry has for the number.
    let wrong = knock(&cluster, client(&cluster.authority, Some(&cluster.identity(2)))).await;
    assert!(wrong.to_string().contains("another key"), "{wrong}");
    let twin = knock(&cluster, client(&cluster.authority, Some(&cluster.identity(1)))).await;
    assert!(twin.to_string().contains("which is this node"), "{twin}");
    assert_eq!(a.backhaul.counts().strangers, 4);

    assert_eq!(a.echo(2, "x").await.unwrap(), "\u{1}x");
    assert_eq!(b.echo(1, "x").await.unwrap(), "\u{2}x");
    // One whom the registry here does not know yet, with a good certificate: it lags.
    let identity = cluster.identity(3);
    let c = cluster.start(identity, |_| {});
    c.backhaul.set_peers(&cluster.peers);
    assert_eq!(c.echo(1, "new").await.unwrap(), "\u{3}new");
    assert_eq!(a.echo(3, "back").await.unwrap(), "\u{1}back");
}

#[tokio::test]
async fn a_fenced_key_is_cut_off_and_stays_out() {
    let (cluster, [a, b, c]) = Cluster::of();
    assert_eq!(b.echo(1, "in").await.unwrap(), "\u{2}in");
    a.backhaul.set_fenced(BTreeSet::from([b.identity.key_hash()]));
    a.backhaul.set_peers(&cluster.peers.without(&number(2)));
    let refused = b.backhaul.ask(number(1), Ask::Ping, Duration::from_secs(2)).await;
    assert!(refused.is_err(), "{refused:?}");
    eventually(|| a.backhaul.counts().strangers, |strangers| *strangers > 0).await;
    assert_eq!(a.echo(2, "x").await, Err(AskError::Open(OpenError::Unknown(number(2)))));
    assert_eq!(a.echo(3, "x").await.unwrap(), "\u{1}x");
    assert_eq!(c.echo(1, "x").await.unwrap(), "\u{3}x");
}

#[tokio::test]
async fn a_removed_member_loses_its_streams_and_is_dialled_no_more() {
    let (cluster, [a, mut b]) = Cluster::of();
    let mut stream = a.backhaul.open(number(2), preamble()).await.unwrap();
    let (_, _, mut theirs) = b.seen.requests.recv().await.unwrap();
    a.backhaul.set_fenced(BTreeSet::from([b.identity.key_hash()]));
    a.backhaul.set_peers(&cluster.peers.without(&number(2)));
    for end in [stream.recv.next().await, theirs.recv.next().await] {
        assert!(matches!(&end, Err(StreamError::Lost(_))), "{end:?}");
    }
    assert!(a.backhaul.proximity().report().is_empty());
    // Admitted once more, it comes back by itself.
    a.backhaul.set_fenced(BTreeSet::new());
    a.backhaul.set_peers(&cluster.peers);
    a.connected(2).await;
    assert_eq!(a.echo(2, "again").await.unwrap(), "\u{1}again");
}

#[tokio::test]
async fn a_dial_that_another_member_answers_is_refused() {
    let mut cluster = Cluster::new();
    let [one, two, three] = [1, 2, 3].map(|node| cluster.identity(node));
    let (a, _b) = (cluster.start(one, |_| {}), cluster.start(two, |_| {}));
    let c = cluster.start(three, |_| {});
    let mut peers = cluster.peers.clone();
    peers[&number(2)].addr = c.backhaul.local_addr();
    a.backhaul.set_peers(&peers);
    let error = a.echo(2, "who are you").await.unwrap_err();
    assert!(matches!(&error, AskError::Open(OpenError::Unreachable { .. })), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    a.backhaul.set_peers(&cluster.peers);
    eventually(|| a.report(2), |report| report.connected).await;
    assert_eq!(a.echo(2, "at last").await.unwrap(), "\u{1}at last");
}

#[tokio::test]
async fn garbage_on_the_socket_harms_nobody() {
    let (cluster, [a, b]) = Cluster::of();
    a.connected(2).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = cluster.peers[&number(1)].addr;
    let mut random = crate::entropy::Entropy::seeded(11);
    for length in 0..1_300usize {
        use skein_core::Random;
        let bytes: Vec<u8> = (0..length).map(|_| random.next_u64() as u8).collect();
        socket.send_to(&bytes, at).await.unwrap();
    }
    // Something that looks like the first packet of a handshake.
    let mut initial = vec![0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0xb0];
    initial.resize(1_200, 0x5a);
    socket.send_to(&initial, at).await.unwrap();
    assert_eq!(b.echo(1, "still here").await.unwrap(), "\u{2}still here");
    assert_eq!(a.echo(2, "still here").await.unwrap(), "\u{1}still here");
}
