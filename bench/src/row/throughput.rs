//! How many requests a program can take, and how long they last when it is half busy.

use std::net::SocketAddr;
use std::time::Duration;

use super::{rounds, settings};
use crate::Args;
use crate::app::{App, REPLAYED};
use crate::load::Load;
use crate::peer::{self, ONE_HOP, Peer, REPLAYS, Running, TWO_HOPS};
use crate::report::{Better, Report};

const PER_SECOND: &str = "requests/s";

/// One hop: client, proxy, app.
pub(super) async fn hop(args: &Args) -> anyhow::Result<Report> {
    saturate(args, "one hop", ONE_HOP).await
}

/// Two hops: client, edge, worker on another node, app; both nodes on the same core.
pub(super) async fn two_hops(args: &Args) -> anyhow::Result<Report> {
    saturate(args, "two hops", TWO_HOPS).await
}

/// The app answers with `fly-replay` to the other region.
pub(super) async fn replay(args: &Args) -> anyhow::Result<Report> {
    saturate(args, "a replayed request", REPLAYS).await
}

async fn saturate(args: &Args, title: &'static str, peers: &[Peer]) -> anyhow::Result<Report> {
    let (_app, programs, skipped) = begin(args, peers).await?;
    let (figures, disturbed) =
        rounds(args).saturate(&programs, |program| load(args, program.address, path(program))).await?;
    if let (Some(into), Some(program)) = (&args.profile, programs.first()) {
        rounds(args).profile(program, load(args, program.address, path(program)), into).await?;
    }
    let settings = format!("{}; {disturbed} further rounds were disturbed and do not count", settings(args));
    Ok(Report::new(title, PER_SECOND, Better::Higher, settings).with(figures, skipped).compared())
}

/// An open loop at half of what each program can take.
pub(super) async fn latency(args: &Args) -> anyhow::Result<Report> {
    let (_app, programs, skipped) = begin(args, ONE_HOP).await?;
    let mut half = Vec::new();
    for program in &programs {
        let load = load(args, program.address, "/");
        load.closed(Duration::from_secs(1)).await?;
        half.push(load.closed(Duration::from_secs(args.seconds.min(3))).await?.per_second() / 2.0);
    }
    let figures = rounds(args).run(&programs, async |program, time| {
        let index = programs.iter().position(|other| other.who == program.who).unwrap_or_default();
        let answers = load(args, program.address, "/").open(half[index], time).await?;
        Ok(answers.times.value_at_quantile(0.99) as f64)
    });
    let rates = programs.iter().zip(&half).map(|(program, rate)| format!("{} {rate:.0}/s", program.who));
    let rates = rates.collect::<Vec<_>>().join(", ");
    let settings = format!("open loop at half of each one's saturation: {rates}; {}", settings(args));
    Ok(Report::new("p99 at half of saturation", "µs", Better::Lower, settings)
        .with(figures.await?, skipped)
        .compared())
}

async fn begin(args: &Args, peers: &[Peer]) -> anyhow::Result<(App, Vec<Running>, Vec<(String, String)>)> {
    let app = App::start().await?;
    let (programs, skipped) = peer::start(peers, args, app.address).await?;
    for program in &programs {
        program.ready(path(program)).await?;
    }
    Ok((app, programs, skipped))
}

fn path(program: &Running) -> &'static str {
    if program.who.ends_with("replay") { REPLAYED } else { "/" }
}

fn load(args: &Args, address: SocketAddr, path: &'static str) -> Load {
    Load { address, path, connections: args.connections }
}
