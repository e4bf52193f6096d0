use std::net::UdpSocket;
use std::time::{Duration, Instant};

use quinn::udp::Transmit;
use quinn::{Runtime, TokioRuntime};
use skein_core::fault::LinkRule;
use tokio::task::JoinSet;

use super::*;
use crate::clock;
use crate::entropy::Entropy;

const PEER: NodeNumber = NodeNumber(2);
const PATIENCE: Duration = Duration::from_secs(20);

/// A shaped socket, and the peer that receives.
struct Bench {
    table: LinkTable,
    shaped: Arc<dyn quinn::AsyncUdpSocket>,
    peer: tokio::net::UdpSocket,
    at: SocketAddr,
    _deliverer: JoinSet<()>,
}

async fn bench(rule: LinkRule) -> Bench {
    let peer = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = peer.local_addr().unwrap();
    let table = LinkTable::default();
    table.set_addresses(BTreeMap::from([(PEER, at)]));
    table.set_faults(BTreeMap::from([(PEER, rule)]));
    let inner = TokioRuntime.wrap_udp_socket(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    let mut poller = Arc::clone(&inner).create_io_poller();
    std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
    let (shaped, deliver) = shape(inner, table.clone(), Entropy::seeded(7));
    let mut deliverer = JoinSet::new();
    deliverer.spawn(deliver);
    Bench { table, shaped, peer, at, _deliverer: deliverer }
}

impl Bench {
    fn send(&self, contents: &[u8], segment_size: Option<usize>) {
        let transmit = Transmit { destination: self.at, ecn: None, contents, segment_size, src_ip: None };
        self.shaped.try_send(&transmit).unwrap();
    }

    async fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let received = tokio::time::timeout(PATIENCE, self.peer.recv(&mut buffer)).await;
        buffer[..received.expect("a packet comes in time").unwrap()].to_vec()
    }

    fn nothing_is_there(&self) -> bool {
        let mut buffer = [0; 2048];
        self.peer.try_recv(&mut buffer).is_err()
    }
}

fn ms(delay: u64) -> LinkRule {
    LinkRule { delay_us: delay * 1_000, ..LinkRule::default() }
}

#[tokio::test]
async fn without_a_rule_a_batch_passes_untouched() {
    let bench = bench(LinkRule::default()).await;
    assert_eq!(bench.table.rule(bench.at), None);
    bench.send(b"aabbc", Some(2));
    assert_eq!(bench.receive().await, b"aa");
    assert_eq!(bench.receive().await, b"bb");
    assert_eq!(bench.receive().await, b"c");
    assert_eq!(bench.table.counts(), LinkCounts::default());
}

#[tokio::test]
async fn a_delayed_batch_comes_late_whole_and_in_order_despite_jitter() {
    let bench = bench(LinkRule { jitter_us: 20_000, ..ms(50) }).await;
    let begin: Instant = clock::now();
    for number in 0..20u8 {
        bench.send(&[number, number, number], Some(2));
    }
    for number in 0..20u8 {
        assert_eq!(bench.receive().await, [number, number]);
        assert_eq!(bench.receive().await, [number]);
    }
    assert!(clock::now() - begin >= Duration::from_millis(50));
    assert_eq!(bench.table.counts().delayed, 20, "batches stay batches");
}

#[tokio::test]
async fn a_cut_passes_nothing_and_healing_needs_no_hand() {
    let bench = bench(LinkRule { cut: true, ..LinkRule::default() }).await;
    bench.send(b"lost", None);
    assert_eq!(bench.table.counts().dropped, 1);
    bench.table.set_faults(BTreeMap::new());
    bench.send(b"kept", None);
    assert_eq!(bench.receive().await, b"kept");
    assert!(bench.nothing_is_there());
}

#[tokio::test]
async fn loss_and_duplication_take_each_packet_of_a_batch_by_itself() {
    let bench = bench(LinkRule { loss: 0.5, duplicate: 0.5, ..LinkRule::default() }).await;
    bench.send(&[9; 400], Some(2));
    let counts = bench.table.counts();
    assert!((60..140).contains(&counts.dropped), "{counts:?}");
    assert!((25..75).contains(&counts.duplicated), "{counts:?}");
    for _ in 0..200 - counts.dropped + counts.duplicated {
        assert_eq!(bench.receive().await, [9, 9]);
    }
    assert!(bench.nothing_is_there());
}

#[tokio::test]
async fn a_reordered_packet_overtakes_delayed_ones() {
    let bench = bench(ms(200)).await;
    bench.send(b"first", None);
    bench.table.set_faults(BTreeMap::from([(PEER, LinkRule { reorder: 1.0, ..ms(200) })]));
    bench.send(b"second", None);
    assert_eq!(bench.receive().await, b"second");
    assert_eq!(bench.receive().await, b"first");
}

#[tokio::test]
async fn a_throttled_link_takes_its_time_and_drops_what_its_buffer_does_not_hold() {
    // 100 packets of 1,000 bytes at 100,000 bytes a second need a second; the buffer holds a quarter.
    let bench = bench(LinkRule { rate: 100_000, ..LinkRule::default() }).await;
    let begin = clock::now();
    for _ in 0..100 {
        bench.send(&[7; 1_000], None);
    }
    let dropped = bench.table.counts().dropped;
    // One more fits for each 10 ms that sending took.
    let passed_meanwhile = (clock::now() - begin).as_millis() as u64 / 10 + 1;
    assert!((73u64.saturating_sub(passed_meanwhile)..=75).contains(&dropped), "{dropped}");
    for _ in 0..100 - dropped {
        bench.receive().await;
    }
    assert!(clock::now() - begin >= Duration::from_millis(240));
}

#[test]
fn distance_and_faults_add_up_and_other_addresses_pass() {
    let table = LinkTable::default();
    table.set_distances(BTreeMap::from([(PEER, ms(40))]));
    let at: SocketAddr = "127.0.0.1:4000".parse().unwrap();
    assert_eq!(table.rule(at), None, "the peer's address is not known yet");
    table.set_addresses(BTreeMap::from([(PEER, at)]));
    table.set_faults(BTreeMap::from([(PEER, ms(5))]));
    assert_eq!(table.rule(at), Some(ms(45)));
    assert_eq!(table.rule("[::ffff:127.0.0.1]:4000".parse().unwrap()), Some(ms(45)));
    assert_eq!(table.rule("127.0.0.1:4001".parse().unwrap()), None);
    assert_eq!(table.effective(PEER), ms(45));
    table.set_faults(BTreeMap::new());
    assert_eq!((table.rule(at), table.faults().len()), (Some(ms(40)), 0));
}
