//! Clients: as fast as answers come, or at a given rate. Every answer is checked.
//!
//! At a given rate a request's time counts from when it was due, not from when a connection was free
//! for it: a proxy that stalls does not silence the measurement of its stall.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::app::{BODY, head_end};

/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked for, and how many ask at once.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    pub(crate) path: &'static str,
    pub(crate) connections: usize,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Answers {
    /// Right answers; a wrong one is an error.
    pub(crate) count: u64,
    /// How long it ran.
    pub(crate) took: Duration,
    /// Microseconds.
    pub(crate) times: Histogram<u64>,
}

impl Answers {
    pub(crate) fn per_second(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }
}

impl Load {
    /// Sends the next request of each connection as soon as the last one is answered.
    pub(crate) async fn closed(&self, time: Duration) -> anyhow::Result<Answers> {
        let clients = self.connect().await?;
        let begin = Instant::now();
        let end = begin + time;
        let mut tasks = JoinSet::new();
        for mut client in clients {
            tasks.spawn(async move {
                let mut times = histogram()?;
                let mut sent = Instant::now();
                while sent < end {
                    client.ask().await?;
                    let now = Instant::now();
                    if now < end {
                        times.record((now - sent).as_micros() as u64)?;
                    }
                    sent = now;
                }
                Ok(times)
            });
        }
        collect(tasks, time).await
    }

    /// Sends so many requests a second, evenly; each connection takes the next one that is due.
    pub(crate) async fn open(&self, per_second: f64, time: Duration) -> anyhow::Result<Answers> {
        let clients = self.connect().await?;
        let gap = Duration::from_secs_f64(self.connections as f64 / per_second);
        let begin = Instant::now();
        let end = begin + time;
        let mut tasks = JoinSet::new();
        for (index, mut client) in clients.into_iter().enumerate() {
            let mut due = begin + gap.mul_f64(index as f64 / self.connections as f64);
            tasks.spawn(async move {
                let mut times = histogram()?;
                while due < end {
                    until(due).await;
                    client.ask().await?;
                    times.record(due.elapsed().as_micros() as u64)?;
                    due += gap;
                }
                Ok(times)
            });
        }
        let mut answers = collect(tasks, time).await?;
        answers.took = begin.elapsed();
        Ok(answers)
    }

    /// Connections that were used once each.
    pub(crate) async fn connect(&self) -> anyhow::Result<Vec<Client>> {
        let mut clients = Vec::with_capacity(self.connections);
        for _ in 0..self.connections {
            let mut client = Client::connect(self.address, self.path).await?;
            client.ask().await?;
            clients.push(client);
        }
        Ok(clients)
    }
}

/// Timers are good to a millisecond only; what is shorter is spent asking.
async fn until(due: Instant) {
    const COARSE: Duration = Duration::from_millis(2);
    let now = Instant::now();
    if due > now + COARSE {
        tokio::time::sleep_until(due - COARSE).await;
    }
    while Instant::now() < due {
        tokio::task::yield_now().await;
    }
}

async fn collect(
    mut tasks: JoinSet<anyhow::Result<Histogram<u64>>>,
    took: Duration,
) -> anyhow::Result<Answers> {
    let mut times = histogram()?;
    let all = async {
        while let Some(done) = tasks.join_next().await {
            times.add(done??)?;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(took + PATIENCE, all).await {
        Ok(all) => all?,
        Err(_) => anyhow::bail!("no answer within {PATIENCE:?}"),
    }
    Ok(Answers { count: times.len(), took, times })
}

/// Up to a minute, with three digits.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_max(60_000_000, 3)?)
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    read: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr, path: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench.localhost\r\n\r\n").into_bytes();
        Ok(Self { stream, request, read: Vec::with_capacity(4 << 10) })
    }

    /// Asks and checks the answer.
    pub(crate) async fn ask(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.request).await?;
        self.read.clear();
        loop {
            let bytes = self.stream.read_buf(&mut self.read).await?;
            anyhow::ensure!(bytes > 0, "the connection was closed instead of an answer");
            if let Some(whole) = check(&self.read)? {
                anyhow::ensure!(whole == self.read.len(), "more bytes than the answer has");
                return Ok(());
            }
        }
    }
}

/// The length of the answer once it is whole.
///
/// # Errors
/// When it is not the app's.
fn check(read: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(end) = head_end(read) else { return Ok(None) };
    let head = std::str::from_utf8(&read[..end]).context("a head that is no text")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200 "), "not a 200:\n{head}");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    anyhow::ensure!(length == Some(BODY.len()), "not the length of the app's body:\n{head}");
    let whole = end + BODY.len();
    if read.len() < whole {
        return Ok(None);
    }
    anyhow::ensure!(read[end..whole] == *BODY, "not the app's body");
    Ok(Some(whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::App;

    fn answer(status: &str, length: usize, body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 {status}\r\nServer: a\r\nContent-Length: {length}\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    #[test]
    fn an_answer_is_right_only_with_status_length_and_body() {
        let right = answer("200 OK", 100, BODY);
        assert_eq!(check(&right).unwrap(), Some(right.len()));
        assert_eq!(check(&right[..right.len() - 1]).unwrap(), None);
        assert_eq!(check(&right[..20]).unwrap(), None);
        for wrong in [
            answer("503 Service Unavailable", 100, BODY),
            answer("200 OK", 99, &BODY[1..]),
            answer("200 OK", 100, &[b'y'; 100]),
            b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        ] {
            assert!(check(&wrong).is_err(), "{}", String::from_utf8_lossy(&wrong));
        }
    }

    #[tokio::test]
    async fn both_loads_count_what_the_app_answered() {
        let app = App::start().await.unwrap();
        let load = Load { address: app.address, path: "/", connections: 4 };
        let fast = load.closed(Duration::from_millis(100)).await.unwrap();
        assert!(fast.count > 0 && fast.per_second() > 0.0);
        let even = load.open(400.0, Duration::from_millis(100)).await.unwrap();
        assert_eq!(even.count, 40);
    }

    #[tokio::test]
    async fn a_stall_counts_for_all_requests_that_were_due_in_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let load = Load { address: listener.local_addr().unwrap(), path: "/", connections: 1 };
        let mut stalling = JoinSet::new();
        stalling.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = [0; 1024];
            let mut count = 0;
            while stream.read(&mut read).await.unwrap_or_default() > 0 {
                count += 1;
                if count == 2 {
                    // Blocks this thread, as a proxy would that does something else.
                    let end = Instant::now() + Duration::from_millis(50);
                    while Instant::now() < end {
                        std::hint::spin_loop();
                    }
                }
                stream.write_all(&answer("200 OK", 100, BODY)).await.unwrap();
            }
        });
        // One is due each millisecond: some fifty of them wait for the stall's end.
        let answers = load.open(1_000.0, Duration::from_millis(100)).await.unwrap();
        assert_eq!(answers.count, 100);
        assert!(answers.times.value_at_quantile(0.7) > 10_000, "{:?}", answers.times.value_at_quantile(0.7));
    }

    #[tokio::test]
    async fn a_wrong_answer_ends_the_load() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let load = Load { address: listener.local_addr().unwrap(), path: "/", connections: 1 };
        let mut wrong = JoinSet::new();
        wrong.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = [0; 1024];
            while stream.read(&mut read).await.unwrap_or_default() > 0 {
                stream.write_all(&answer("502 Bad Gateway", 100, BODY)).await.unwrap();
            }
        });
        let error = load.closed(Duration::from_millis(100)).await.unwrap_err();
        assert!(format!("{error:#}").contains("502"), "{error:#}");
    }
}
