//! Bodies far larger than what a node may keep, both ways (SPEC HTTP-7): client, edge in `iad`,
//! backhaul, worker in `lhr`, Machine.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use ring::digest::{Context, Digest, SHA256};

use crate::scale;
use crate::support::process::{Memory, forget_peak, memory};
use crate::support::{Cluster, Request, SOON, eventually, now};

/// Bytes of a body at scale 1.
const BODY: f64 = 1e9;
/// What a node may need for a body in transit beyond what it has at rest: buffers of two sockets, a
/// stream's window, a pump. It does not depend on the body's length.
const FLAT: u64 = 32 << 20;
/// A client that can't write for so long has met back-pressure.
const STALLED: Duration = Duration::from_secs(1);
/// What is written and read at once.
const BLOCK: usize = 256 << 10;

#[test]
fn bodies_of_any_length_pass_both_ways_with_a_flat_footprint() {
    let length = (BODY * scale()) as u64;
    // With distances, a stream's window bounds how much passes in a second, and nothing else.
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--no-demo", "--latency", "none"]);
    let config = cluster.home.path().join("fly.toml");
    let toml = "app = \"bulk\"\nprimary_region = \"lhr\"\n[build]\nimage = \"skein/hello\"\n[http_service]\n";
    std::fs::write(&config, toml).unwrap();
    cluster.skein(&["deploy", "-c", config.to_str().unwrap(), "--regions", "lhr"]).ok();
    let edge = cluster.endpoint("bulk", "iad-1");
    eventually("the Machine answers", SOON, || match Request::get(edge, "/").send() {
        Ok(reply) if reply.status == 200 && reply.field("region") == "lhr" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let nodes = [("edge", cluster.pid("iad-1")), ("worker", cluster.pid("lhr-1"))];

    let (expected, got) = measured("download", length, nodes, || download(edge, length));
    assert_eq!(hex(&got), hex(&expected), "what came is what /bytes says");
    let (sent, came) = measured("echo", length, nodes, || echo(edge, length));
    assert_eq!(hex(&came), hex(&sent), "what came back is what was sent");
}

/// Runs a transfer, tells what it took, and holds the nodes to [`FLAT`].
fn measured<T>(what: &str, length: u64, nodes: [(&str, u32); 2], transfer: impl FnOnce() -> T) -> T {
    let before = nodes.map(|(_, pid)| {
        if let Err(error) = forget_peak(pid) {
            eprintln!("the peak is the one since the node's start: {error}");
        }
        memory(pid)
    });
    let began = now();
    let done = transfer();
    let took = now().saturating_duration_since(began).as_secs_f64();
    let mb = length as f64 / 1e6;
    eprintln!("{what}: {mb:.0} MB in {took:.1} s, {:.0} MB/s each way", mb / took);
    for ((role, pid), before) in nodes.into_iter().zip(before) {
        let Memory { resident, peak } = memory(pid);
        let grew = peak.saturating_sub(before.resident);
        eprintln!(
            "{what}: {role}: resident {} before, {} after, at most {} KiB: the peak grew by {} KiB",
            before.resident >> 10,
            resident >> 10,
            peak >> 10,
            grew >> 10
        );
        assert!(grew <= FLAT, "{what}: the {role} took {grew} bytes more for a body of {length}");
    }
    done
}

/// `GET /bytes/<length>`; the digests of what is expected and of what came.
fn download(edge: SocketAddr, length: u64) -> (Digest, Digest) {
    // As the sample app makes it: a line, repeated to 64 KiB, which are repeated.
    let line = b"the quick brown fox jumps over the lazy dog 0123456789\n";
    let unit: Vec<u8> = line.iter().copied().cycle().take(65_536).collect();
    let mut expected = Context::new(&SHA256);
    let mut left = length;
    while left > 0 {
        let part = left.min(unit.len() as u64);
        expected.update(&unit[..part as usize]);
        left -= part;
    }
    let mut stream = connect(edge);
    write!(stream, "GET /bytes/{length} HTTP/1.1\r\nhost: {edge}\r\n\r\n").unwrap();
    (expected.finish(), response(&stream, length))
}

/// `POST /echo` with pseudo-random bytes; the digests of what was sent and of what came back. Nobody
/// reads the echo until nothing more can be sent; from then on it is read while the rest is sent.
fn echo(edge: SocketAddr, length: u64) -> (Digest, Digest) {
    let stream = connect(edge);
    let (full, stalled) = mpsc::channel();
    let send = || {
        write!(&stream, "POST /echo HTTP/1.1\r\nhost: {edge}\r\ncontent-length: {length}\r\n\r\n").unwrap();
        stream.set_write_timeout(Some(STALLED)).unwrap();
        let mut full = Some(full);
        let mut random = fastrand::Rng::with_seed(length);
        let (mut sent, mut block) = (Context::new(&SHA256), vec![0; BLOCK]);
        let mut left = length;
        while left > 0 {
            let part = left.min(BLOCK as u64);
            let mut bytes = &mut block[..part as usize];
            random.fill(bytes);
            sent.update(bytes);
            while !bytes.is_empty() {
                match (&stream).write(bytes) {
                    Ok(taken) => {
                        bytes = &mut bytes[taken..];
                        left -= taken as u64;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock && full.is_some() => {
                        full.take().unwrap().send(length - left).unwrap();
                        stream.set_write_timeout(Some(SOON)).unwrap();
                    }
                    Err(error) => panic!("{left} bytes were still to send: {error}"),
                }
            }
        }
        sent.finish()
    };
    std::thread::scope(|scope| {
        let sender = scope.spawn(send);
        let taken = stalled.recv().expect("all of it was taken while nobody read: there is no back-pressure");
        eprintln!("echo: {} KiB were taken while nobody read", taken >> 10);
        let came = response(&stream, length);
        (sender.join().unwrap(), came)
    })
}

fn connect(edge: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(edge).unwrap();
    // Of each read and write, not of the whole.
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

/// Reads a response whose body has this length; the body's digest.
fn response(stream: &TcpStream, length: u64) -> Digest {
    let mut reader = BufReader::with_capacity(BLOCK, stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_ascii_lowercase()),
        }
    }
    assert!(head.first().is_some_and(|status| status.contains(" 200 ")), "{head:?}");
    assert!(
        head.contains(&format!("content-length: {length}")),
        "its length is known from the start: {head:?}"
    );
    assert!(!head.iter().any(|line| line.starts_with("content-encoding")), "nobody asked for it: {head:?}");
    let (mut digest, mut block, mut left) = (Context::new(&SHA256), vec![0; BLOCK], length);
    while left > 0 {
        let most = left.min(BLOCK as u64) as usize;
        let read = reader
            .read(&mut block[..most])
            .unwrap_or_else(|error| panic!("{left} of {length} bytes were still to come: {error}"));
        assert!(read > 0, "cut off: {left} of {length} bytes are missing");
        digest.update(&block[..read]);
        left -= read as u64;
    }
    // The connection stays, so nothing may come after the body.
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let more = reader.read(&mut block);
    assert!(more.is_err(), "after the whole body: {more:?}");
    digest.finish()
}

fn hex(digest: &Digest) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
