//! Requests that want Machines started (SPEC AUTO-2, AUTO-3; INCIDENTS X17).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skein_cluster::{BoxFuture, clock};
use skein_core::autostop::decider::decides;
use skein_core::autostop::start::{Demand, Place, Starter};
use skein_core::machine::MachineState::{self, Started, Starting, Stopped};
use skein_core::{MachineId, NodeNumber};
use skein_edge::{EdgeConfig, Starts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::backend::{Got, Server, get, replay, text};
use crate::world::{HTTP, World};

/// What edges said.
#[derive(Debug)]
enum Said {
    Demand { edge: NodeNumber, decider: NodeNumber, place: Place, demand: Demand },
    Start { owner: NodeNumber, machine: MachineId },
}

#[derive(Debug, Clone)]
struct Heard {
    edge: NodeNumber,
    to: mpsc::UnboundedSender<Said>,
}

impl Starts for Heard {
    fn demand(
        &self,
        decider: NodeNumber,
        place: Place,
        demand: Demand,
    ) -> BoxFuture<'static, Result<(), String>> {
        let sent = self.to.send(Said::Demand { edge: self.edge, decider, place, demand });
        Box::pin(async move { sent.map_err(|error| error.to_string()) })
    }
    fn start(&self, owner: NodeNumber, machine: MachineId) -> BoxFuture<'static, Result<(), String>> {
        let sent = self.to.send(Said::Start { owner, machine });
        Box::pin(async move { sent.map_err(|error| error.to_string()) })
    }
}

/// Nodes whose demands are heard by the test, which decides as a node does.
struct Cluster {
    world: World,
    said: mpsc::UnboundedReceiver<Said>,
    starter: Starter,
    /// How often each Machine was started.
    begun: BTreeMap<MachineId, u32>,
}

impl Cluster {
    fn new(regions: &[&str], configure: impl Fn(&mut EdgeConfig)) -> Self {
        let (to, said) = mpsc::unbounded_channel();
        let world = World::with(regions, |config| {
            config.starts = Some(Arc::new(Heard { edge: config.node, to: to.clone() }));
            configure(config);
        });
        Self { world, said, starter: Starter::default(), begun: BTreeMap::new() }
    }

    fn state(&mut self, id: MachineId, state: MachineState) {
        self.world.change(id, |machine| machine.state = state);
    }

    /// Hears one word; answers which Machines are to be started for it.
    async fn hear(&mut self) -> Vec<MachineId> {
        let said = tokio::time::timeout(Duration::from_secs(30), self.said.recv()).await;
        match said.expect("nobody says that anything is wanted").unwrap() {
            Said::Demand { edge, decider, place, demand } => {
                let now = clock::now();
                self.starter.tell(now, edge, place, demand);
                let snapshot = self.world.snapshot(0);
                let app = &snapshot.apps[&place.0];
                assert!(decides(decider, app, place.2, snapshot), "{decider} does not decide");
                self.starter.due(now, place, snapshot).iter().map(|machine| machine.id).collect()
            }
            Said::Start { owner, machine } => {
                assert_eq!(self.world.snapshot(0).machine(machine).unwrap().node, owner);
                // Said again while it comes up.
                if self.begun.contains_key(&machine) { Vec::new() } else { vec![machine] }
            }
        }
    }

    /// Starts what is wanted until all these requests are answered. A Machine that starts is seen to, and
    /// serves at a later word: not one of those who wait may fail meanwhile.
    async fn until_answered(&mut self, mut requests: JoinSet<Got>) -> Vec<Got> {
        let (mut answers, mut coming) = (Vec::new(), Vec::new());
        while !requests.is_empty() {
            tokio::select! {
                biased;
                Some(answer) = requests.join_next() => answers.push(answer.unwrap()),
                begun = self.hear() => {
                    let up = std::mem::replace(&mut coming, begun);
                    up.iter().for_each(|id| self.state(*id, Started));
                    for id in coming.clone() {
                        *self.begun.entry(id).or_default() += 1;
                        self.state(id, Starting);
                    }
                    if !up.is_empty() || !coming.is_empty() {
                        self.world.publish();
                    }
                }
            }
        }
        answers
    }

    fn started(&self) -> Vec<MachineId> {
        assert!(self.begun.values().all(|times| *times == 1), "each once: {:?}", self.begun);
        self.begun.keys().copied().collect()
    }
}

fn asking(at: std::net::SocketAddr) -> JoinSet<Got> {
    let mut requests = JoinSet::new();
    requests.spawn(async move { get(at, "/").await });
    requests
}

/// SPEC AUTO-2.
#[tokio::test]
async fn auto_2_when_none_runs_one_request_starts_exactly_one_and_gets_its_answer() {
    for at in [0, 1] {
        let server = Server::answering(|_| text(200, "hello")).await;
        let mut cluster = Cluster::new(&["iad", "lhr"], |_| {});
        let app = cluster.world.app("hello");
        for _ in 0..3 {
            let id = cluster.world.machine(at, app, server.address, HTTP);
            cluster.state(id, Stopped);
        }
        cluster.world.publish();
        let edge = cluster.world.shared(0, 80).await;
        let answers = cluster.until_answered(asking(edge)).await;
        assert_eq!((answers[0].status, answers[0].text()), (200, "hello"), "node {at}");
        assert_eq!(cluster.started().len(), 1, "node {at}");
        assert!(
            cluster.world.nodes[0]
                .edge
                .metrics()
                .contains("skein_edge_starts_wanted_count{region=\"iad\",host=\"iad-1\"} 1")
        );
    }
}

/// SPEC AUTO-3.
#[tokio::test]
async fn auto_3_without_autostart_nothing_is_started_and_the_request_is_refused_at_once() {
    let mut cluster = Cluster::new(&["iad"], |_| {});
    let app = cluster.world.app("hello");
    let off = HTTP.replacen('{', r#"{"autostart":false,"#, 1);
    let id = cluster.world.machine(0, app, "127.0.0.1:9".parse().unwrap(), &off);
    cluster.state(id, Stopped);
    cluster.world.publish();
    let got = get(cluster.world.shared(0, 80).await, "/").await;
    assert_eq!((got.status, got.header("skein-error")), (503, Some("PR01")));
    assert!(got.header("retry-after").is_some());
    assert!(cluster.said.try_recv().is_err(), "nobody was asked");
}

/// A start that does not come.
#[tokio::test]
async fn a_request_waits_until_its_deadline_and_says_that_no_start_came() {
    let mut cluster = Cluster::new(&["iad"], |config| config.route_timeout = Duration::from_millis(500));
    let app = cluster.world.app("hello");
    let id = cluster.world.machine(0, app, "127.0.0.1:9".parse().unwrap(), HTTP);
    cluster.state(id, Stopped);
    cluster.world.publish();
    let got = get(cluster.world.shared(0, 80).await, "/").await;
    assert_eq!((got.status, got.header("skein-error")), (503, Some("PM01")), "{}", got.text());
    assert_eq!(cluster.hear().await, [id], "a start was wanted");
}

/// SPEC AUTO-2: "it goes to a running Machine elsewhere when that RTT is below the measured start time".
#[tokio::test]
async fn auto_2_a_request_goes_on_to_a_near_region_and_the_own_one_wakes_meanwhile() {
    let far = Server::answering(|_| text(200, "far")).await;
    let mut cluster = Cluster::new(&["iad", "lhr"], |_| {});
    let app = cluster.world.app("hello");
    let near = cluster.world.machine(0, app, far.address, HTTP);
    cluster.world.machine(1, app, far.address, HTTP);
    cluster.state(near, Stopped);
    cluster.world.publish();
    let edge = cluster.world.shared(0, 80).await;
    assert_eq!(get(edge, "/").await.text(), "far", "nobody started anything yet");
    assert_eq!(cluster.hear().await, [near]);
    cluster.state(near, Started);
    cluster.world.publish();
    get(edge, "/").await;
    assert!(cluster.said.try_recv().is_err(), "one runs here");
}

/// SPEC RPL-8: "A stopped target Machine is started."
#[tokio::test]
async fn rpl_8_a_stopped_machine_that_a_replay_names_is_started_itself() {
    let target = Server::answering(|_| text(200, "named")).await;
    let mut cluster = Cluster::new(&["iad", "lhr"], |_| {});
    let app = cluster.world.app("hello");
    let named = cluster.world.machine(1, app, target.address, HTTP);
    let instruction = format!("instance={named}");
    let source = Server::answering(move |_| replay(&instruction)).await;
    cluster.world.machine(0, app, source.address, HTTP);
    cluster.world.machine(1, app, source.address, HTTP);
    cluster.state(named, Stopped);
    cluster.world.publish();
    let edge = cluster.world.shared(0, 80).await;
    let answers = cluster.until_answered(asking(edge)).await;
    assert_eq!((answers[0].status, answers[0].text()), (200, "named"));
    assert_eq!(cluster.started(), [named]);
}

/// A Machine that stopped a moment ago, of which this edge has not heard (SPEC LB-5, PM11).
#[tokio::test]
async fn one_that_refuses_because_it_stopped_is_passed_over_or_woken_when_no_other_is_there() {
    let server = Server::answering(|_| text(200, "hello")).await;
    for others in [0, 1] {
        let mut cluster = Cluster::new(&["iad", "iad"], |_| {});
        let app = cluster.world.app("hello");
        let stopped = cluster.world.machine(1, app, server.address, HTTP);
        if others == 1 {
            cluster.world.machine(0, app, server.address, HTTP);
        }
        cluster.world.publish();
        cluster.state(stopped, Stopped);
        // The worker knows it, and no edge does.
        cluster.world.publish_local();
        let edge = cluster.world.shared(0, 80).await;
        let asked = clock::now();
        for _ in 0..4 {
            let mut requests = asking(edge);
            if others == 1 {
                assert_eq!(requests.join_next().await.unwrap().unwrap().status, 200, "since {asked:?}");
                assert!(cluster.said.try_recv().is_err(), "another one took it");
            } else {
                cluster.world.change(stopped, |machine| machine.state = Stopped);
                let heard = cluster.said.recv().await.unwrap();
                assert!(matches!(heard, Said::Demand { .. }), "{heard:?}");
                cluster.state(stopped, Started);
                cluster.world.publish();
                assert_eq!(cluster.until_answered(requests).await[0].status, 200);
                break;
            }
        }
    }
}

/// INCIDENTS X17: a herd on five edges.
async fn herd(running: usize, requests: usize) -> usize {
    // Nobody is answered before all are there: all are in flight, or wait, at the same time.
    let (gate, open) = (Arc::new(Notify::new()), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let (waits, opened) = (Arc::clone(&gate), Arc::clone(&open));
    let server = Server::bytes(move |mut stream, _| {
        let (gate, open) = (Arc::clone(&waits), Arc::clone(&opened));
        Box::pin(async move {
            while crate::backend::read_head(&mut stream).await.is_some() {
                let passed = gate.notified();
                if !open.load(std::sync::atomic::Ordering::SeqCst) {
                    passed.await;
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
                stream.write_all(answer).await.unwrap();
            }
        })
    })
    .await;
    let mut cluster = Cluster::new(&["iad"; 5], |_| {});
    let app = cluster.world.app("hello");
    let soft = r#"{"type":"requests","soft_limit":20}"#;
    let services = HTTP.replacen(r#"{"type":"requests"}"#, soft, 1);
    for node in 0..5 {
        let id = cluster.world.machine(node, app, server.address, &services);
        if node >= running {
            cluster.state(id, Stopped);
        }
    }
    cluster.world.publish();
    let mut asked = JoinSet::new();
    for number in 0..requests {
        let edge = cluster.world.shared(number % 5, 80).await;
        asked.spawn(async move { get(edge, "/").await });
    }
    let needed = requests.div_ceil(20).min(5) - running;
    // Nothing comes up before all are wanted: whoever waits goes on waiting and is told of.
    let mut coming = Vec::new();
    while coming.len() < needed {
        coming.extend(cluster.hear().await);
    }
    assert_eq!(coming.len(), needed);
    for id in coming {
        *cluster.begun.entry(id).or_default() += 1;
        cluster.state(id, Started);
    }
    cluster.world.publish();
    open.store(true, std::sync::atomic::Ordering::SeqCst);
    gate.notify_waiters();
    let answers = cluster.until_answered(asked).await;
    assert!(answers.iter().all(|got| got.status == 200), "none fails");
    assert_eq!(answers.len(), requests);
    cluster.started().len()
}

#[tokio::test]
async fn x17_a_herd_starts_what_it_needs_and_none_fails() {
    assert_eq!(herd(0, 60).await, 3, "60 ÷ 20");
    assert_eq!(herd(0, 20).await, 1);
    // Of 1,000 no more could be needed than all there are.
    assert_eq!(herd(1, 200).await, 4);
}

/// Raw connections wait, too.
#[tokio::test]
async fn a_raw_connection_wakes_a_machine_and_is_served() {
    const RAW: &str = r#"{"internal_port":7,"ports":[{"port":7}]}"#;
    let server = Server::bytes(|mut stream, _| {
        Box::pin(async move {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            stream.write_all(&byte).await.unwrap();
        })
    })
    .await;
    let mut cluster = Cluster::new(&["iad"], |_| {});
    let app = cluster.world.app("hello");
    let id = cluster.world.machine(0, app, server.address, RAW);
    let dedicated = cluster.world.dedicated(app);
    cluster.state(id, Stopped);
    cluster.world.publish();
    let mut client = TcpStream::connect(cluster.world.map(0, dedicated, 7).await).await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(cluster.hear().await, [id]);
    cluster.state(id, Started);
    cluster.world.publish();
    let mut answer = [0];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"x");
}
