//! Raw TCP (SPEC HND-1).

use skein_core::machine::MachineState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::{Server, nowhere};
use crate::world::{World, eventually};

const RAW: &str = r#"{"internal_port":7,"ports":[{"port":7}]}"#;

/// The app answers only once the client has said that it is done: half-close has to cross.
#[tokio::test]
async fn hnd_1_bytes_and_half_close_pass_unchanged_here_and_elsewhere() {
    for at in [0, 1] {
        let server = Server::bytes(|mut stream, _| {
            Box::pin(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                all.reverse();
                stream.write_all(&all).await.unwrap();
            })
        })
        .await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        world.machine(0, app, nowhere().await, RAW);
        let machine = world.machine(at, app, server.address, RAW);
        let dedicated = world.dedicated(app);
        world.publish();
        let mut client = TcpStream::connect(world.map(0, dedicated, 7).await).await.unwrap();
        client.write_all(b"\0\xffabc").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"cba\xff\0", "node {at}");
        eventually("the slot is free", || world.in_flight(machine) == 0).await;
        // SPEC PUB-2: not on a shared address.
        let mut refused = TcpStream::connect(world.shared(0, 7).await).await.unwrap();
        assert_eq!(refused.read(&mut [0; 8]).await.unwrap(), 0);
    }
}

/// What is still there when the time for it is over would hang at a process that does not run.
#[tokio::test]
async fn http_11_raw_connections_end_when_their_machine_is_suspended_and_not_before() {
    for at in [0, 1] {
        let server = Server::echoing().await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        let machine = world.machine(at, app, server.address, RAW);
        let dedicated = world.dedicated(app);
        world.publish();
        let mut client = TcpStream::connect(world.map(0, dedicated, 7).await).await.unwrap();
        client.write_u8(1).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), 1);
        world.change(machine, |machine| machine.state = MachineState::Suspending);
        world.publish_local();
        client.write_u8(2).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), 2, "it has its time, node {at}");
        world.change(machine, |machine| machine.state = MachineState::Suspended);
        world.publish_local();
        // Cut off or ended: in any case over.
        assert!(!matches!(client.read(&mut [0; 8]).await, Ok(1..)), "node {at}");
        eventually("the slot is free", || world.in_flight(machine) == 0).await;
    }
}

/// SPEC LB-4: a connection waits for room as a request does, and gets its turn when another one ends.
#[tokio::test]
async fn lb_4_a_raw_connection_waits_until_one_that_is_open_ends() {
    const ONE: &str =
        r#"{"internal_port":7,"concurrency":{"type":"connections","hard_limit":1},"ports":[{"port":7}]}"#;
    for at in [0, 1] {
        let server = Server::echoing().await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        let machine = world.machine(at, app, server.address, ONE);
        let dedicated = world.dedicated(app);
        world.publish();
        let edge = world.map(0, dedicated, 7).await;
        let mut first = TcpStream::connect(edge).await.unwrap();
        first.write_u8(1).await.unwrap();
        assert_eq!(first.read_u8().await.unwrap(), 1);
        let mut second = TcpStream::connect(edge).await.unwrap();
        second.write_u8(2).await.unwrap();
        let waiting = || {
            let metrics = world.nodes[0].edge.metrics();
            metrics.lines().any(|line| line.starts_with("skein_edge_queue_waiting{") && line.ends_with(" 1"))
        };
        eventually("the second waits", waiting).await;
        assert_eq!(world.in_flight(machine), 1);
        drop(first);
        assert_eq!(second.read_u8().await.unwrap(), 2, "node {at}");
        assert!(!waiting());
    }
}
